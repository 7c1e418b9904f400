"""The benchmark of products on tiny shapes: what it stores, prints and holds against targets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import codec_rates, contenders, kernels, targets
from benchmarks.contenders import BF16, INDEX, INT4, INT8_ACTIVATION
from benchmarks.torch_path import implementation, linear_path
from benchmarks.unavailable import Unavailable
from phiquant import ops

needs_kernels = pytest.mark.skipif(not ops.compiled, reason="the compiled kernels are not built")


@pytest.fixture(autouse=True)
def _same_threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_READER_BYTES", 1_000_000)
    monkeypatch.setattr(contenders, "last_level_cache", lambda: 100_000)
    monkeypatch.setattr(kernels, "linear_path", lambda rows, threads: "a path")


@needs_kernels
@pytest.mark.usefixtures("few_bytes")
def test_main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kernels.json"
    options = ["--shapes", "64x256", "96x128", "--rows", "1", "8", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", ["kernels", *options, "--threads", "1", "--json", str(path)])
    kernels.main()
    stored = json.loads(path.read_text())
    assert stored["environment"]["torch bf16 path"] == {"1": "a path", "8": "a path"}
    cases = {(row["shape"], row["rows"]) for row in stored["linear"]}
    assert cases == {(shape, rows) for shape in ("64x256", "96x128") for rows in (1, 8)}
    for row in stored["linear"]:
        assert row["error"] < (0.03 if row["what"] == INT8_ACTIVATION else 5e-3)
        assert row["best_ms"] <= row["ms"]
        assert row["times_bf16"] > 0
        assert row["of_bandwidth"] == pytest.approx(row["gb_per_s"] / row["bandwidth_gb_per_s"])
    printed = capsys.readouterr().out
    assert "64x256, M = 8" in printed
    assert f"{INDEX}, M = 1, against {INT4}, all shapes" in printed


@needs_kernels
@pytest.mark.usefixtures("few_bytes")
def test_nothing_is_timed_if_a_product_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(weight: torch.Tensor) -> Any:
        right = next(contenders.torch_dense(weight))
        yield contenders.Contender(
            "wrong", lambda x, w: -right.product(x, w), right.operands, right.dequantize
        )

    monkeypatch.setattr(kernels, "build", lambda weight: contenders.build(weight, (wrong,)))
    monkeypatch.setattr(kernels, "take_turns", lambda *args: pytest.fail("was timed"))
    with pytest.raises(AssertionError, match="wrong: 1 rows are off"):
        kernels.measure(["64x256"], [1], 0.0, progress=lambda text: None)


@needs_kernels
@pytest.mark.usefixtures("few_bytes")
def test_who_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(weight: torch.Tensor) -> Any:
        raise Unavailable("mine: pip install mine")

    builders = (contenders.torch_dense, absent)
    monkeypatch.setattr(kernels, "build", lambda weight: contenders.build(weight, builders))
    rows, missing = kernels.measure(["64x256"], [1], 0.0, progress=lambda text: None)
    assert missing == ["mine: pip install mine"]
    assert all(row["times_int4pack"] is None for row in rows)
    assert "| torch bf16 " in kernels.summary(rows)


def test_targets_are_ratios_of_speed() -> None:
    times = (("a", INDEX, 1.0), ("a", INT4, 2.0), ("b", INDEX, 4.0), ("b", INT4, 2.0))
    rows = [{"shape": shape, "rows": 1, "what": what, "ms": ms} for shape, what, ms in times]
    found = [str(verdict) for verdict in targets.verdicts(rows)]
    assert found[:3] == [
        f"MISS  {INDEX}, M = 1, against {INT4}, all shapes: 1.00 x, bar 1.2",
        f"PASS      a: {INDEX}, M = 1, against {INT4}: 2.00 x, bar 1.2",
        f"MISS      b: {INDEX}, M = 1, against {INT4}: 0.50 x, bar 1.2",
    ]
    assert all(line.startswith("----") for line in found[3:])
    assert any(BF16 in line for line in found[3:])
    assert not any("M = 8" in line for line in found)


def test_implementation_is_that_of_the_product() -> None:
    lines = (
        "onednn_verbose,v1,info,oneDNN v3.7",
        "onednn_verbose,v1,primitive,create:cache_miss,cpu,matmul,brg_matmul:avx512,undef",
        "onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul:avx512,undef,src:bf16",
    )
    assert implementation("\n".join(lines)) == "matmul brg_matmul:avx512"
    assert implementation("") == "torch's own, not oneDNN"


@pytest.mark.slow
def test_torch_tells_its_path() -> None:
    assert linear_path(2, 1)


@needs_kernels
def test_codec_rates() -> None:
    with torch.inference_mode():
        codec_rates.verify()
        rows = codec_rates.measure(1, torch.get_num_threads(), size=256)
    lossy = {codec_rates.LOSSY.format(bits) for bits in (0, 2, 4, 8)}
    assert {row["planes"] for row in rows} == lossy | {codec_rates.EXACT}
    assert all(row["million_per_s"] > 0 for row in rows)
    assert len(codec_rates.verdicts(rows)) == len(codec_rates.BARS)
    assert not any(str(verdict).startswith("----") for verdict in codec_rates.verdicts(rows))
