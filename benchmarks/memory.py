"""Peak memory of compressing a model while it is loaded, by the command, and of reloading it.

Every case runs in a process of its own; peaks are above what the process held when its imports
were done and the same had run once with a tiny model. The bars: compressing while loading peaks at
the compressed size and two original tensors, the command at a shard and two original tensors, and
reloading, one forward pass included, at 1.05 of the bytes that are read.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import phiquant
from benchmarks.memory_cases import TIERS, cases, digest
from benchmarks.reporting import environment, save, table

MB = 1e6
LARGE = {  # 341 M parameters; layers as wide as those of models of one to two billion
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "vocab_size": 16000,
}
TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
}
_RELOAD = 1.05  # of the bytes that are read


def make(folder: Path, sizes: dict[str, int]) -> int:
    """Save a random model in bf16 with a tied head; returns how many parameters it has."""
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, tie_word_embeddings=True, max_position_embeddings=64)
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(folder / "plain")
    return sum(parameter.numel() for parameter in model.parameters())


def measure(large: Path, tiny: Path, shard: int) -> dict[str, Any]:
    """Every case by its name, with its peaks in bytes and the digest of what came out.

    Raises:
        subprocess.CalledProcessError: a case failed; its message was printed.
    """
    found = {}
    for name in cases(shard):
        command = [sys.executable, "-m", "benchmarks.memory_cases", name]
        done = subprocess.run(
            [*command, str(large), str(tiny), str(shard)],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}: {found[name]['peaks']['all'] / MB:.0f} MB", file=sys.stderr)
    return found


def sizes(folder: Path) -> dict[str, float]:
    """Bytes that each case reads or makes, and of the largest original."""
    plain = phiquant.open(folder / "plain")
    bytes_of = {name: plain.stored_bytes(name) for name in plain}
    found: dict[str, float] = {"plain": sum(bytes_of.values()), "largest": max(bytes_of.values())}
    for tier in TIERS:
        checkpoint = phiquant.open(folder / "exact", tier=tier)
        found[tier] = sum(map(checkpoint.stored_bytes, checkpoint))
    lossy = phiquant.open(folder / "lossy")
    found["lossy"] = sum(map(lossy.stored_bytes, lossy))
    return found


def bars(size: dict[str, float], shard: int) -> dict[str, float]:
    """What each case may take, in bytes."""
    two = 2 * size["largest"]
    return {
        "on load, 8.25 bits": size["lossy"] + two,
        "on load, exact": size["exact"] + two,
        "command, 8.25 bits": shard + two,
        "command, exact": shard + two,
        **{f"reload, {tier}": _RELOAD * size[tier] for tier in TIERS},
        "phiquant.load, 8.25 bits": _RELOAD * size["lossy"],
    }


def check(found: dict[str, Any], folder: Path) -> None:
    """Raise AssertionError unless every way to the same planes came to the same planes."""
    exact = phiquant.open(folder / "exact")
    for names in (
        ("on load, 8.25 bits", "command, 8.25 bits", "phiquant.load, 8.25 bits"),
        ("on load, exact", "command, exact", "reload, exact"),
    ):
        digests = {name: found[name]["digest"] for name in names}
        assert len(set(digests.values())) == 1, f"not the same planes: {digests}"
    original = phiquant.open(folder / "plain")
    assert digest((name, original[name]) for name in original) == digest(
        (name, exact[name].dequantize() if name in exact.headers else exact[name]) for name in exact
    ), "the exact checkpoint is not the original"


def report(found: dict[str, Any], size: dict[str, float], shard: int) -> list[dict[str, Any]]:
    """A row for each case, in MB."""
    allowed, rows = bars(size, shard), []
    for name, result in found.items():
        peaks, bar = result["peaks"], allowed.get(name, math.nan)
        verdict = None if math.isnan(bar) else "pass" if peaks["all"] <= bar else "MISS"
        row = {kind: round(peaks[kind] / MB, 1) for kind in ("all", "anonymous", "files")}
        rows.append({"case": name, **row, "bar": round(bar / MB, 1) if verdict else None})
        rows[-1]["verdict"] = verdict
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--shard", type=int, default=64_000_000, help="bytes of the command's files"
    )
    parser.add_argument("--json", type=Path, help="write the results here, too")
    parser.add_argument("--folder", type=Path, help="where to put the models (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        large, tiny = Path(folder) / "large", Path(folder) / "tiny"
        count, _ = make(large, LARGE), make(tiny, TINY)
        found = measure(large, tiny, options.shard)
        check(found, large)
        size = sizes(large)
    rows = report(found, size, options.shard)
    where = environment("benchmarks.memory")
    print(f"{count / 1e6:.0f} M parameters; {json.dumps(where['versions'])}; {where['command']}")
    print(", ".join(f"{name} {bytes_ / MB:.1f} MB" for name, bytes_ in size.items()))
    print("every way to the same planes came to the same planes, and exact is the original\n")
    print(table(["peak above the baseline, MB", *list(rows[0])[1:]], [r.values() for r in rows]))
    if options.json:
        save(options.json, {"environment": where, "sizes": size, "cases": rows})
    if any(row["verdict"] == "MISS" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
