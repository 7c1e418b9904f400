"""What the benchmarks on a GPU share: their options, and what they say of the device."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.reporting import environment
from phiquant import ops


def gpu_parser(doc: str) -> argparse.ArgumentParser:
    """`doc`: the benchmark's docstring, whose first line says what it is."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the results there")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options; exits with what is missing if nothing could be measured here."""
    options = parser.parse_args()
    if not torch.cuda.is_available() or not ops.compiled_cuda:
        parser.error(f"needs a GPU and phiquant's kernels for it: {ops.why_not_compiled_cuda}")
    return options


def gpu_environment(module: str) -> dict[str, Any]:
    about = environment(module)
    return about | {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
