"""What this installation runs on: kernels, instruction set, threads, versions; and what to mend."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch

from phiquant import ops

_PACKAGES = ("torch", "torchao", "transformers", "safetensors")


@dataclass
class Diagnosis:
    """What was found, by subject, and a remedy for each shortcoming.

    found: subject to what is the case, in the order to read it.
    remedies: what would make it faster or right; empty if all is well.
    """

    found: dict[str, str] = field(default_factory=dict)
    remedies: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        width = max(map(len, self.found), default=0)
        lines = [f"{subject:<{width}}  {text}" for subject, text in self.found.items()]
        return "\n".join([*lines, *(f"remedy: {remedy}" for remedy in self.remedies)])


def doctor() -> Diagnosis:
    """Say which kernels and instruction set are in use and why, and what to do about shortcomings.

    >>> "instruction set" in doctor().found
    True
    """
    result = Diagnosis()
    result.found["versions"] = _versions()
    if ops.compiled:
        result.found["kernels"] = f"compiled: {ops.library_path()}"
        _tell_instruction_set(result, json.loads(torch.ops.phiquant.isa()))
    else:
        _tell_reference(result)
    _tell_threads(result)
    _tell_cuda(result)
    return result


def _versions() -> str:
    from phiquant import __version__  # not there yet when this module is imported

    texts = [f"phiquant {__version__}", f"Python {platform.python_version()}"]
    return ", ".join([*texts, *(f"{name} {_version(name)}" for name in _PACKAGES)])


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _tell_reference(result: Diagnosis) -> None:
    result.found["kernels"] = f"the Python reference: {ops.library_path()}: {ops.why_not_compiled}"
    result.found["instruction set"] = "whatever torch's own operations use"
    result.found["products"] = "every product decodes the whole weight with torch's operations"
    result.remedies.append(
        "install a C++ compiler (g++ or clang++) and reinstall phiquant; PHIQUANT_BUILD_CPU=1 "
        "says why it cannot be built, if it cannot"
    )


def _tell_instruction_set(result: Diagnosis, about: dict[str, Any]) -> None:
    forced = os.environ.get("PHIQUANT_ISA", "")
    if "error" in about:
        result.found["instruction set"] = about["error"]
        result.remedies.append("unset PHIQUANT_ISA: until then every operation fails")
        return
    best = next(entry["name"] for entry in about["sets"] if not entry["missing"])
    why = f"PHIQUANT_ISA={forced}" if forced else "the best of this build that this CPU has"
    result.found["instruction set"] = f"{about['chosen']}: {why}"
    for entry in about["sets"]:
        state = f"this CPU lacks {', '.join(entry['missing'])}" if entry["missing"] else "supported"
        result.found[f"  {entry['name']}"] = state
    has = [name for name, present in about["features"].items() if present]
    result.found["CPU features"] = ", ".join(has) or "none that this build asks for"
    if about["chosen"] != best:
        result.remedies.append(f"unset PHIQUANT_ISA: this CPU has {best}, which is faster")
    _tell_products(result, about)


def _tell_products(result: Diagnosis, about: dict[str, Any]) -> None:
    """Which way a product goes, by tier, dtype and rows of its input."""
    integers, tiles, found = about["integers"], about["tiles"], result.found
    for bits, rows in about["fused_rows"].items():
        kind = "index" if bits == "0" else f"index + deviation {bits}"
        plain = f"up to {rows} rows: codes in registers; more: blocks are decoded for torch"
        own = _own_ways(bits in ("0", "4"), about)
        found[f"products, {kind}"] = f"bf16 input: {own}. Else, {plain}" if own else plain
    few = "up to 16 rows: rows are decoded for the cache; more: blocks are decoded for torch"
    bf16 = "bf16 input: rows of the weight are decoded for the matrix unit. fp32, fp16: "
    found["products, exact"] = few if tiles is None else bf16 + few
    found["int8 activations"] = (
        "no kernel for them here: they change nothing"
        if integers is None
        else "index plane, groups of 64 or 128: "
        + ("one row in VNNI, more on the matrix unit" if tiles else "up to 16 rows in VNNI")
    )


def _own_ways(joined: bool, about: dict[str, Any]) -> str:
    """How bf16 input goes that has ways of its own; ``joined``: codes that those ways read."""
    ways, tiles = [], about["tiles"]
    if joined and about["integers"] is not None:
        ways.append("one row: 16-bit integers in VNNI")
    if joined and tiles is not None:
        ways.append(f"{tiles['least']} to {tiles['most']} rows: codes on the matrix unit")
    if tiles is not None:
        most = tiles["most"] if joined else about["few_for_matrix_unit"]
        ways.append(f"above {most} rows: decoded for the matrix unit")
    return "; ".join(ways)


def _tell_threads(result: Diagnosis) -> None:
    threads, cores = torch.get_num_threads(), _cores()
    result.found["threads"] = f"{threads} of {cores} cores that this process may use"
    if threads > cores:
        result.remedies.append(
            f"{threads} threads share {cores} cores and wait for each other: "
            f"OMP_NUM_THREADS={cores} or torch.set_num_threads({cores})"
        )
    elif threads < cores // 2:  # two threads of one core count as two cores here
        result.remedies.append(
            f"only {threads} of {cores} cores are used: torch.set_num_threads, or OMP_NUM_THREADS"
        )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _tell_cuda(result: Diagnosis) -> None:
    if torch.version.cuda is None:
        result.found["CUDA"] = "this torch is built without it"
    elif not torch.cuda.is_available():
        result.found["CUDA"] = f"torch is built for {torch.version.cuda}, but sees no GPU"
    elif ops.compiled_cuda:
        result.found["CUDA"] = f"kernels: {ops.cuda_library_path()}"
        result.found["products, CUDA"] = (
            "4 index bits, groups of 64, 16-bit input, up to 8 rows: codes in registers; "
            "else the weight is decoded for torch"
        )
    else:
        result.found["CUDA"] = (
            f"no kernels ({ops.why_not_compiled_cuda}): on a GPU every product decodes its whole "
            "weight with torch's operations"
        )
        result.remedies.append(
            "install the CUDA toolkit (nvcc) and reinstall phiquant; PHIQUANT_BUILD_CUDA=1 says "
            "why the kernels cannot be built, if they cannot"
        )
