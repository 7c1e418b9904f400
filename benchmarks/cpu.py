"""All benchmarks of a CPU, one after the other: `python -m benchmarks.cpu [--json FOLDER]`.

Each runs in a process of its own, so that none finds the memory or the threads of another.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PARTS = ("bandwidth", "codec_rates", "kernels", "decode")


def commands(folder: Path | None, threads: int | None) -> list[list[str]]:
    """What is run, with the options that all of them take."""
    found = []
    for part in PARTS:
        command = [sys.executable, "-m", f"benchmarks.{part}"]
        command += ["--json", str(folder / f"{part}.json")] if folder else []
        command += ["--threads", str(threads)] if threads else []
        command += ["--compile"] if part == "decode" else []
        found.append(command)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="also write a file of each")
    parser.add_argument("--threads", type=int, help="default: as many as torch takes")
    options = parser.parse_args()
    for command in commands(options.json, options.threads):
        print(f"--- {' '.join(command[1:])}", flush=True)
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
