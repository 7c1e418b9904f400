"""What binds each kernel on a GPU: `python -m benchmarks.cuda_counters`, which needs `ncu`.

Nsight Compute runs this program again and counts: every kernel of every case once, its caches
flushed, the clock left alone. Times are longer than in a graph, where kernels overlap and begin
without a flush. A kernel that ours call, such as cuBLAS's after a decode, is not among them.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cuda_options import gpu_environment, gpu_parser, parsed
from benchmarks.reporting import save, table
from phiquant import PhiConfig, PhiTensor, graph_ops

Cases = Iterator[tuple[str, Callable[[], object]]]
phi = torch.ops.phiquant

_SHAPE = 14336, 4096
_EXPERTS = 8, 4096, 14336
_TOGETHER = (4096, 1024, 1024)  # queries, keys and values
_TIERS = {
    "index": PhiConfig(deviation_bits=0),
    "index + 2": PhiConfig(deviation_bits=2),
    "index + 4": PhiConfig(),
    "index + 8": PhiConfig(deviation_bits=8),
    "exact": PhiConfig(exact=True),
}
_BETWEEN = "spin_kernel"  # torch.cuda._sleep's, which stands between cases
_STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
_REASONS = (
    "long_scoreboard", "short_scoreboard", "barrier", "wait", "math_pipe_throttle",
    "mio_throttle", "lg_throttle", "not_selected", "membar", "sleeping", "dispatch_stall",
    "no_instruction", "branch_resolve", "gmma",
)  # fmt: skip
_SELECTED = _STALL.format("selected")
_METRICS = {
    "us": "gpu__time_duration.sum",
    "read": "dram__bytes_read.sum",
    "written": "dram__bytes_write.sum",
    "dram": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "issue": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "l1": "l1tex__throughput.avg.pct_of_peak_sustained_active",
    "tensor": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "instructions": "smsp__inst_executed.sum",
    "registers": "launch__registers_per_thread",
    "threads": "launch__block_size",
    "blocks": "launch__grid_size",
    "shared": "launch__shared_mem_per_block",
}
_UNITS = {"nsecond": 1e-3, "usecond": 1.0, "msecond": 1e3, "ns": 1e-3, "us": 1.0, "ms": 1e3}
_SIZES = {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


def compressed(config: PhiConfig, rows: int, columns: int) -> PhiTensor:
    layer = nn.Linear(columns, rows, bias=False, device="cuda", dtype=torch.bfloat16)
    return PhiTensor.from_hp(layer.weight.detach() * 0.5, config)


def random_x(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)


def together(weights: list[PhiTensor], x: Tensor) -> Any:
    planes = zip(*(weight.planes[:-1] for weight in weights), strict=True)
    lists = [[plane for plane in of if plane is not None] for of in planes]
    columns, *layout = weights[0].op_arguments
    return phi._linears(x, *lists, [], columns, graph_ops.pack(*layout, False))


def experts(config: PhiConfig) -> Callable[[], object]:
    """One token takes two of them."""
    count, rows, columns = _EXPERTS
    made = [compressed(config, rows, columns) for _ in range(count)]
    planes = [
        None if of[0] is None else torch.stack(of)
        for of in zip(*(weight.planes for weight in made), strict=True)
    ]
    ends = torch.arange(count, device="cuda").clamp(max=2).int()
    width, *layout = made[0].op_arguments
    return partial(phi.grouped_linear, random_x(2, columns), *planes, ends, width, *layout)


def cases() -> Cases:
    rows, columns = _SHAPE
    for name, config in _TIERS.items():
        weight = compressed(config, rows, columns)
        for m in (1, 8, 16, 24, 256):
            yield f"{m} rows, {name}", partial(functional.linear, random_x(m, columns), weight)
        yield f"decode, {name}", weight.dequantize
    of = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)
    for name in ("index", "index + 4", "exact"):
        yield f"encode, {name}", partial(PhiTensor.from_hp, of, _TIERS[name])
    for name, m in product(("index", "index + 4"), (1, 8)):
        weights = [compressed(_TIERS[name], each, columns) for each in _TOGETHER]
        yield f"{m} rows, q, k, v, {name}", partial(together, weights, random_x(m, columns))
    for name in ("index", "index + 4"):
        yield f"experts, {name}", experts(_TIERS[name])


@torch.inference_mode()
def run_cases() -> None:
    """What the profiler watches: cases, a kernel of torch's between them."""
    cudart: Any = torch.cuda.cudart()
    for name, call in cases():
        call()
        torch.cuda.synchronize()
        cudart.cudaProfilerStart()
        torch.cuda._sleep(1000)
        call()
        torch.cuda.synchronize()
        cudart.cudaProfilerStop()
        print("case:", name, flush=True)


def profiled() -> str:
    """What the profiler says of this program's cases."""
    metrics = [*_METRICS.values(), _SELECTED, *map(_STALL.format, _REASONS)]
    command = [
        "ncu", "--csv", "--page", "raw", "--profile-from-start", "off", "--clock-control", "none",
        "--kernel-name-base", "demangled", "--kernel-name", f"regex:phiquant|{_BETWEEN}",
        "--metrics", ",".join(metrics),
        sys.executable, "-m", "benchmarks.cuda_counters", "--inside",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ncu ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def kernels_of(text: str) -> list[dict[str, Any]]:
    """Kernels of a profile, each with its case."""
    lines = text.splitlines()
    names = [line.removeprefix("case: ") for line in lines if line.startswith("case: ")]
    found, case = [], -1
    reader = csv.DictReader(line for line in lines if line.startswith('"'))
    units = next(reader)
    for row in reader:
        if _BETWEEN in row["Kernel Name"]:
            case += 1
        else:
            found.append({"case": names[case], **counted(row, units)})
    return found


def counted(row: dict[str, str], units: dict[str, str]) -> dict[str, Any]:
    """A kernel's counters, in us, bytes and percent."""
    kernel = re.sub(r"(\w+|<unnamed>)::", "", row["Kernel Name"]).removeprefix("void ")
    made: dict[str, Any] = {"kernel": kernel.split("(")[0]}
    for name, metric in _METRICS.items():
        unit = units[metric].split("/")[0]
        factor = _UNITS.get(unit, _SIZES.get(unit, 1.0))
        made[name] = _number(row[metric]) * factor
    known = [reason for reason in _REASONS if row.get(_STALL.format(reason))]  # of this GPU
    stalls = {reason: _number(row[_STALL.format(reason)]) for reason in known}
    every = sum(stalls.values()) + _number(row[_SELECTED])
    made["stalls"] = {reason: of / every for reason, of in stalls.items()}
    return made


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def report(found: list[dict[str, Any]]) -> str:
    header = [
        "case", "kernel", "us", "TB/s", "% of DRAM", "% issue", "% L1", "% tensor",
        "% occupancy", "M instructions", "registers", "threads", "blocks", "kB shared",
        "waits for most",
    ]  # fmt: skip
    return table(header, map(cells, found))


def cells(row: dict[str, Any]) -> list[Any]:
    first = sorted(row["stalls"], key=lambda reason: -row["stalls"][reason])[:2]
    waits = ", ".join(f"{reason} {row['stalls'][reason]:.0%}" for reason in first)
    return [
        row["case"], row["kernel"], row["us"],
        (row["read"] + row["written"]) / row["us"] / 1e6,
        *(round(row[key]) for key in ("dram", "issue", "l1", "tensor", "occupancy")),
        row["instructions"] / 1e6,
        *(int(row[key]) for key in ("registers", "threads", "blocks")),
        row["shared"] / 1e3,
        waits,
    ]  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = gpu_parser(__doc__)
    parser.add_argument("--inside", action="store_true", help="what the profiler runs")
    options = parsed(parser)
    if not options.inside and shutil.which("ncu") is None:
        parser.error("needs ncu, which comes with the CUDA toolkit (Nsight Compute)")
    return options


def main() -> None:
    options = arguments()
    if options.inside:
        torch.manual_seed(0)
        run_cases()
        return
    about = gpu_environment("benchmarks.cuda_counters")
    found = kernels_of(profiled())
    print(report(found))
    print(json.dumps(about, indent=1))
    if options.json:
        save(options.json, {"environment": about, "kernels": found})


if __name__ == "__main__":
    main()
