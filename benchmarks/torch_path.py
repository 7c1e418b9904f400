"""Which kernel torch's bf16 `F.linear` takes, told by oneDNN in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

_PROGRAM = """
import sys, torch
torch.set_num_threads(int(sys.argv[2]))
x, w = torch.ones(int(sys.argv[1]), 4096).bfloat16(), torch.ones(4096, 4096).bfloat16()
with torch.inference_mode():
    torch.nn.functional.linear(x, w)
"""
_NATIVE = "torch's own, not oneDNN"


def linear_path(rows: int, threads: int) -> str:
    """The implementation of a product of `rows` rows with 4096x4096, as oneDNN names it."""
    output = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(rows), str(threads)],
        env={**os.environ, "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return implementation(output)


def implementation(verbose: str) -> str:
    """The primitives that oneDNN reports to have run, joined by a plus."""
    fields = [line.split(",") for line in verbose.splitlines() if ",exec," in line]
    # onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul:avx512_core_amx,...
    found = [" ".join(f[f.index("cpu") + 1 :][:2]) for f in fields if "cpu" in f]
    return " + ".join(found) if found else _NATIVE
