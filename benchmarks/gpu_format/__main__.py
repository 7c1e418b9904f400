"""Does the format suit a GPU? Time of the simplest kernels that read each tier.

    python -m benchmarks.gpu_format

Compiles decode.cu with nvcc (or takes --library, compiled elsewhere by the command that --help
prints), checks every decoder bit for bit, then times decoding to bf16 and a product with one row
against torch's bf16, in CUDA graphs, over copies that together exceed the L2 cache.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.reporting import environment, save, table
from phiquant import ops
from phiquant.codec import Layout, Planes

ROWS, COLUMNS, COPIES = 14336, 4096, 4
WAYS = ("index", "deviation, formula", "deviation, table", "exact, by word", "exact, by window")
SOURCE = Path(__file__).with_name("decode.cu")
NVCC = (
    f"nvcc -O3 -std=c++20 -arch=sm_90 -Xcompiler -fPIC -shared "
    f"-I{SOURCE.parents[2] / 'csrc' / 'include'} {SOURCE} -o"
)


class Pointers(ctypes.Structure):
    """decode.cu's Planes."""

    _fields_ = [
        *((n, ctypes.c_void_p) for n in ("index", "deviation", "scale")),
        *((n, ctypes.c_void_p) for n in ("remainder", "offsets", "starts")),
        ("unit", ctypes.c_float),
    ]


def pointers(planes: Planes, layout: Layout) -> Pointers:
    names = ("index", "deviation", "scale", "remainder", "offsets", "starts")
    return Pointers(*(getattr(planes, n).data_ptr() for n in names), 2.0**layout.exponent)


def encoded(weight: Tensor, layout: Layout) -> Planes:
    phi, arguments = torch.ops.phiquant, astuple(layout)[1:]
    index, deviation, _, scale = phi.encode(weight, None, *arguments, "joint")
    exact = phi.encode_remainder(weight, index, deviation, None, scale, *arguments)
    assert exact[3].shape[0] == 0
    return Planes(index, deviation, None, scale, *exact[:3])


def on_gpu(planes: Planes) -> Planes:
    return Planes(*(None if plane is None else plane.cuda() for plane in planes))


def expected(planes: Planes, layout: Layout, way: str) -> Tensor:
    """What a decoder must give, in bf16."""
    if way.startswith("exact"):
        return codec_decode(planes, layout)
    lossy = layout.without_remainder
    if way == "index":
        lossy = Layout(layout.columns, 4, 0, exponent=layout.exponent)
        return codec_decode(Planes(planes.index, None, None, planes.scale), lossy)
    return codec_decode(Planes(*planes[:4]), lossy)


def codec_decode(planes: Planes, layout: Layout) -> Tensor:
    return torch.ops.phiquant.decode(*planes, *astuple(layout), torch.bfloat16)


def microseconds(run: Callable[[int, int], object], calls: int = 40) -> float:
    """The median time of a call in a graph of ``calls``; run(number, stream)."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(0, stream.cuda_stream)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for number in range(calls):
            run(number, torch.cuda.current_stream().cuda_stream)
    times = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / calls)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / microseconds(lambda *_: target.copy_(source), 10) * 1e6


def bits_read(planes: Planes, way: str) -> float:
    count = {"index": 1, "exact": 7}.get(way.partition(",")[0], 2)
    read = [*planes[:count], planes.scale] if count < 4 else planes
    return sum(p.nbytes for p in read if p is not None) * 8 / (ROWS * COLUMNS)


def measure(library: ctypes.CDLL) -> list[dict[str, float | str]]:
    layout = Layout(COLUMNS, exponent=-10, stored_dtype=torch.bfloat16)
    weight = (torch.randn(ROWS, COLUMNS) * 0.02).bfloat16()
    planes = encoded(weight, layout)
    gpu = [on_gpu(planes) for _ in range(COPIES)]
    given = [pointers(p, layout) for p in gpu]
    out = torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16, device="cuda")
    x, y = torch.randn(COLUMNS, device="cuda"), torch.empty(ROWS, device="cuda")
    dense, row = [weight.cuda() for _ in range(2)], x.bfloat16()[None]
    bandwidth = copy_bandwidth()
    torch_time = microseconds(lambda i, _: functional.linear(row, dense[i % 2]))
    print(f"copy {bandwidth / 1e12:.2f} TB/s, torch's bf16 product {torch_time:.1f} us")
    rows: list[dict[str, float | str]] = []
    for number, way in enumerate(WAYS):

        def decode(i: int, stream: int, number: int = number) -> None:
            blocks = ROWS * COLUMNS // 512
            library.run_decode(number, given[i % COPIES], out.data_ptr(), blocks, stream)

        def product(i: int, stream: int, number: int = number) -> None:
            planes = given[i % COPIES]
            library.run_product(
                number, planes, x.data_ptr(), y.data_ptr(), ROWS, COLUMNS // 512, stream
            )

        decode(0, torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        assert torch.equal(
            out.cpu().view(torch.int16), expected(planes, layout, way).view(torch.int16)
        )
        product(0, torch.cuda.current_stream().cuda_stream)
        rounding = 2**-8 * (out.float().abs() @ x.abs())  # `out` holds bf16, the product fp32
        assert ((y - out.float() @ x).abs() <= rounding).all()
        bits, decoding, multiplying = (
            bits_read(planes, way),
            microseconds(decode),
            microseconds(product),
        )
        moved = ROWS * COLUMNS * (bits / 8 + 2)
        rows.append(
            {
                "tier": way,
                "bits": bits,
                "decode us": decoding,
                "of copy": moved / decoding * 1e6 / bandwidth,
                "product us": multiplying,
                "x bf16": torch_time / multiplying,
            }
        )
    return rows


def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.run_decode.argtypes = [integer, Pointers, pointer, ctypes.c_int64, pointer]
    library.run_product.argtypes = [integer, Pointers, *[pointer] * 2, *[integer] * 2, pointer]
    library.set_up()
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], epilog=NVCC)
    parser.add_argument("--library", type=Path, help="decode.cu, already compiled")
    parser.add_argument("--json", type=Path, help="also write the results there")
    options = parser.parse_args()
    if not torch.cuda.is_available() or not ops.compiled:
        parser.error("needs a GPU and phiquant's compiled kernels")
    path = options.library
    if path is None:
        path = Path(tempfile.mkdtemp()) / "decode.so"
        subprocess.run([*NVCC.split(), str(path)], check=True)
    torch.manual_seed(0)
    about = environment("benchmarks.gpu_format") | {"gpu": torch.cuda.get_device_name()}
    print(about)
    rows = measure(load(path))
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    if options.json:
        save(options.json, {"environment": about, "rows": rows})


if __name__ == "__main__":
    main()
