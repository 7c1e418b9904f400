"""A file written by format version 1 is read for ever, bit for bit, by every kernel."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import phiquant
from phiquant import PhiTensor, codec, ops
from phiquant.codec import Layout
from tests.support import same_bits

GOLDEN = Path(__file__).parents[1] / "data" / "golden_v1"
# The first 32 digits of SHA-256: these files are never written again.
SUMS = {
    "expected.decodes": "eb4e70b78612dd3816954691e06e5fd2",
    "model-00001-of-00002.safetensors": "7995c9aa737b15f7a9f214dc3c503356",
    "model-00002-of-00002.safetensors": "39b059cde9865320f34d18eac5047f14",
    "model.safetensors.index.json": "9117cae70c5956c0342cdc0b76ce7f06",
}
TIERS = ("index", "deviation", "exact")
EXPECTED = load_file(GOLDEN / "expected.decodes")
NAMES = sorted({name.partition("/")[0] for name in EXPECTED})


def expected(name: str, tier: str) -> Tensor:
    """What a weight was decoded to; without a remainder its deepest tier."""
    return EXPECTED.get(f"{name}/{tier}", EXPECTED[f"{name}/deviation"])


@pytest.fixture(params=["compiled", "reference"])
def decode(request: pytest.FixtureRequest) -> object:
    """What decodes a compressed weight."""
    if request.param == "compiled":
        if not ops.compiled:
            pytest.skip("the compiled kernels are not built")
        return PhiTensor.dequantize

    def reference(tensor: PhiTensor) -> Tensor:
        layout = Layout(*tensor.op_arguments)
        weight = codec.decode(tensor.planes, layout, tensor.dtype)
        if tensor.column_shape:
            return weight.unflatten(-1, tensor.column_shape)
        return weight.transpose(-2, -1) if tensor.transposed else weight

    return reference


def test_the_committed_files_are_those_that_were_written() -> None:
    sums = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:32] for file in GOLDEN.iterdir()
    }
    assert sums == SUMS


def test_names_and_ties() -> None:
    checkpoint = phiquant.open(GOLDEN)
    assert set(checkpoint) == {*NAMES, "bias", "steps"}
    assert checkpoint.tied == {"inner.weight": "lossy_4_4"}
    assert checkpoint["bias"].tolist() == [0, 1, 2]
    assert checkpoint["steps"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("tier", ["index", "deviation", None])
@pytest.mark.parametrize("name", NAMES)
def test_every_weight_at_every_tier(name: str, tier: str | None, decode: object) -> None:
    tensor = phiquant.open(GOLDEN, tier).read(name)
    assert same_bits(decode(tensor), expected(name, tier or "exact"))  # type: ignore[operator]


@pytest.mark.parametrize("name", sorted(n for n in EXPECTED if n.endswith("/first deviation")))
def test_the_first_of_two_deviations(name: str, decode: object) -> None:
    tensor = phiquant.open(GOLDEN)[name.partition("/")[0]]
    assert same_bits(decode(tensor.at(4)), EXPECTED[name])  # type: ignore[operator]


@pytest.mark.parametrize("name", sorted(n[:-6] for n in EXPECTED if n.endswith("/exact")))
def test_exact_weights_verify_and_rows_are_read_alone(name: str) -> None:
    tensor = phiquant.open(GOLDEN)[name]
    assert tensor.verify()
    part = tensor[1:]
    part = part.dequantize() if isinstance(part, PhiTensor) else part
    assert same_bits(part, expected(name, "exact")[1:])


def test_a_module_takes_it() -> None:
    model = nn.Module()
    for name in NAMES:
        of = torch.zeros_like(expected(name, "exact"))
        setattr(model, name, nn.Parameter(of, requires_grad=False))
    model.inner = nn.Module()
    model.inner.weight = nn.Parameter(torch.zeros_like(model.lossy_4_4))
    model.bias = nn.Parameter(torch.zeros(3))
    model.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
    phiquant.load(model, GOLDEN)
    assert model.inner.weight is model.lossy_4_4
    for name in NAMES:
        assert same_bits(getattr(model, name).dequantize(), expected(name, "exact")), name


def test_every_kind_is_there() -> None:
    headers = phiquant.open(GOLDEN).headers.values()
    assert {(h.layout.index_bits, h.layout.deviation_bits) for h in headers} >= {
        (4, 4), (5, 8), (4, 0), (2, 2)
    }  # fmt: skip
    assert {h.layout.grid for h in headers} == {"phi", "golden"}
    assert {h.layout.group_size for h in headers} == {32, 64, 128}
    assert len({h.stored_dtype for h in headers if h.remainder}) == 3
    assert sum(h.exceptions > 0 for h in headers) == 3
    assert any(h.transposed for h in headers)
    assert any(h.column_dims == 3 for h in headers)
    assert any(len(h.shape) == 3 for h in headers)
    assert any(h.layout.columns % h.layout.group_size for h in headers)
    assert any(h.planes["starts"][1][0] > 1 for h in headers if h.remainder)
    assert any(h.layout.blocks > 1 for h in headers)
    assert any(h.layout.exponent != -10 for h in headers)
    assert any(h.dtype != h.stored_dtype for h in headers)
