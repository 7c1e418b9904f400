"""Concatenation and padding of compressed weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from phiquant import PhiConfig, PhiTensor
from tests.support import same_bits, weight, with_specials

TIERS = {
    "index": PhiConfig(deviation_bits=0),
    "deviation 8": PhiConfig(deviation_bits=8),
    "exact": PhiConfig(exact=True),
}


@pytest.fixture(params=TIERS)
def make(request: pytest.FixtureRequest) -> Callable[..., PhiTensor]:
    """A compressed weight at each tier; an exact one has infinities and NaN."""

    def of(*shape: int, seed: int = 0, **how: bool) -> PhiTensor:
        plain = weight(*shape, dtype=torch.bfloat16, seed=seed)
        plain = with_specials(plain) if request.param == "exact" else plain
        return PhiTensor.from_hp(plain, TIERS[request.param], **how)

    return of


def assert_joins(parts: list[PhiTensor], dim: int) -> PhiTensor:
    joined = torch.cat(parts, dim)
    assert isinstance(joined, PhiTensor)
    assert same_bits(joined.dequantize(), torch.cat([p.dequantize() for p in parts], dim))
    return joined


class TestConcatenation:
    @pytest.mark.parametrize(
        ("shapes", "dim"),
        [
            pytest.param([(3, 130), (5, 130)], 0, id="rows"),
            pytest.param([(3, 1100), (40, 1100), (1, 1100)], -2, id="rows of many blocks"),
            pytest.param([(3, 512), (3, 1024), (3, 70)], 1, id="columns"),
            pytest.param([(2, 4, 130), (3, 4, 130)], 0, id="experts"),
            pytest.param([(2, 4, 600), (2, 3, 600)], 1, id="rows of experts"),
            pytest.param([(2, 4, 512), (2, 4, 64)], -1, id="columns of experts"),
        ],
    )
    def test_stays_compressed(
        self, make: Callable[..., PhiTensor], shapes: list[tuple[int, ...]], dim: int
    ) -> None:
        parts = [make(*shape, seed=seed) for seed, shape in enumerate(shapes)]
        joined = assert_joins(parts, dim)
        blocks = 0 if joined.offset_plane is None else joined.offset_plane.numel()
        assert joined.stored_bytes <= sum(part.stored_bytes for part in parts) + 8 * blocks

    def test_parts_of_one_give_it_back(self, make: Callable[..., PhiTensor]) -> None:
        whole = make(9, 1100)
        joined = assert_joins([whole[:4], whole[4:4], whole[4:]], 0)
        assert torch.equal(joined, whole)

    def test_of_transposed_weights(self, make: Callable[..., PhiTensor]) -> None:
        parts = [make(2, 512, 5, transposed=True), make(2, 512, 3, transposed=True)]
        assert_joins(parts, 2)
        assert_joins([part.narrow(2, 0, 3) for part in parts], 1)

    def test_of_convolutions(self) -> None:
        parts = [PhiTensor.from_hp(weight(n, 8, 3, 3), column_dims=3) for n in (2, 5)]
        assert assert_joins(parts, 0).shape == (7, 8, 3, 3)

    def test_of_scales_with_other_exponents(self) -> None:
        parts = [PhiTensor.from_hp(weight(4, 128) * scale) for scale in (1, 1000)]
        assert parts[0].exponent != parts[1].exponent
        assert_joins(parts, 0)

    @pytest.mark.parametrize(
        "others",
        [
            pytest.param(lambda t: [t, t.dequantize()], id="a plain tensor"),
            pytest.param(lambda t: [t, t.at(0)], id="a shallower tier"),
            pytest.param(lambda t: [t, t.half()], id="another dtype"),
            pytest.param(lambda t: [t, PhiTensor.from_hp(1e30 * weight(3, 128))], id="far scales"),
        ],
    )
    def test_what_does_not_fit_decodes(self, others: Callable[[PhiTensor], list[Tensor]]) -> None:
        parts = others(PhiTensor.from_hp(weight(3, 128)))
        with pytest.warns(UserWarning, match=r"aten\.cat\.default has no compressed form"):
            joined = torch.cat(parts)
        assert not isinstance(joined, PhiTensor)
        plain = [p.dequantize() if isinstance(p, PhiTensor) else p for p in parts]
        assert torch.equal(joined, torch.cat(plain))


class TestPadding:
    def test_rows_of_zeros(self, make: Callable[..., PhiTensor]) -> None:
        """A lossy tier has no zero: it decodes to the smallest level, which is next to none."""
        whole = make(5, 130)
        padded = torch.nn.functional.pad(whole, (0, 0, 0, 3))
        assert isinstance(padded, PhiTensor)
        assert same_bits(padded.dequantize()[:5], whole.dequantize())
        below = padded.dequantize()[5:]
        assert below.shape == (3, 130)
        assert below.abs().max() <= (0 if whole.is_exact else 1e-7)

    def test_rows_of_zeros_for_experts(self, make: Callable[..., PhiTensor]) -> None:
        padded = torch.nn.functional.pad(make(2, 3, 600), (0, 0, 0, 1))
        assert isinstance(padded, PhiTensor)
        assert padded.shape == (2, 4, 600)
        assert padded[:, 3].dequantize().abs().max() <= 1e-7
