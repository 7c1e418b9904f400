"""The phi-grid: its constants, its shape, and the order in which it rounds."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
import torch

from phiquant.grid import BENDS, DEVIATION_BITS, GRIDS, INDEX_BITS, LADDER, LINES, Grid


@pytest.fixture(autouse=True)
def fifty_digits() -> Iterator[None]:
    with localcontext() as context:
        context.prec = 50
        yield


def golden_ratio() -> Decimal:
    return (1 + Decimal(5).sqrt()) / 2


def is_nearest_float(value: float, exact: Decimal) -> bool:
    """No fp32 number is closer to ``exact`` than ``value``."""
    here = torch.tensor(value, dtype=torch.float32)
    distance = abs(Fraction(value) - Fraction(exact))
    neighbours = (torch.nextafter(here, torch.tensor(end)) for end in (-torch.inf, torch.inf))
    return here.item() == value and all(
        distance < abs(Fraction(n.item()) - Fraction(exact)) for n in neighbours
    )


def exact_bends() -> list[Decimal]:
    phi = golden_ratio()
    half, middle = Decimal("0.5"), phi**-2 + phi**-6
    return [phi**-4, phi**-3, half / phi, phi**-2, middle, half, 1 - middle, 1 - phi**-5]


def fp32(value: float) -> float:
    return ctypes.c_float(value).value


def every_position(index_bits: int, deviation_bits: int) -> torch.Tensor:
    """The edges and the centres of all sub-cells, ascending, both ends included."""
    half = 1 << (index_bits - 1)
    steps = (2 * half << (deviation_bits + 1)) + 1
    return torch.arange(steps) * 0.5 ** (deviation_bits + 1) - (half - 0.5)


every_grid = pytest.mark.parametrize("name", GRIDS)
every_index_bits = pytest.mark.parametrize("index_bits", INDEX_BITS, ids="index{}".format)
every_deviation_bits = pytest.mark.parametrize(
    "deviation_bits", DEVIATION_BITS, ids="deviation{}".format
)


class TestConstants:
    def test_bends_are_the_nearest_floats_to_the_powers_of_phi(self) -> None:
        exact = exact_bends()
        assert len(exact) == len(BENDS)
        assert all(is_nearest_float(*pair) for pair in zip(BENDS, exact, strict=True))

    def test_lines_are_the_nearest_floats_to_one_minus_the_bend(self) -> None:
        exact = [1 - bend for bend in exact_bends()]
        assert all(is_nearest_float(*pair) for pair in zip(LINES, exact, strict=True))

    def test_bends_ascend(self) -> None:
        assert sorted(set(BENDS)) == list(BENDS)

    def test_ladder_is_the_nearest_floats_to_the_hyperbolic_sine(self) -> None:
        log = golden_ratio().ln()
        exact = [((h * log / 2).exp() - (-h * log / 2).exp()) / 2 for h in range(len(LADDER))]
        assert all(is_nearest_float(*pair) for pair in zip(LADDER, exact, strict=True))

    def test_ladder_holds_binets_numbers_at_even_integers(self) -> None:
        """2 sinh(n ln phi) / sqrt 5 is the n-th Fibonacci number for even n."""
        fibonacci = [0, 1]
        while len(fibonacci) < len(LADDER) // 2:
            fibonacci.append(fibonacci[-1] + fibonacci[-2])
        for n in range(2, len(fibonacci), 2):
            root = Decimal(5).sqrt()
            assert float(2 * Decimal(LADDER[2 * n]) / root) == pytest.approx(fibonacci[n], rel=1e-7)


class TestShape:
    @every_grid
    @every_index_bits
    @every_deviation_bits
    def test_strictly_ascending_on_all_edges_and_centres(
        self, name: str, index_bits: int, deviation_bits: int
    ) -> None:
        grid = Grid(name, index_bits)
        for bend in range(grid.bends):
            level = grid.value(every_position(index_bits, deviation_bits), torch.tensor(bend))
            assert (level.diff() > 0).all(), f"bend {bend}"

    @every_grid
    @every_index_bits
    def test_one_at_the_position_half_and_zero_at_zero(self, name: str, index_bits: int) -> None:
        grid = Grid(name, index_bits)
        bends = torch.arange(grid.bends)
        assert (grid.value(torch.tensor(float(grid.half)), bends) == 1).all()
        assert (grid.value(torch.tensor(0.0), bends) == 0).all()

    @every_grid
    @every_index_bits
    def test_odd(self, name: str, index_bits: int) -> None:
        grid = Grid(name, index_bits)
        position = torch.arange(0, grid.half - 0.4, 1 / 16)
        bends = torch.arange(grid.bends).unsqueeze(-1)
        assert torch.equal(grid.value(-position, bends), -grid.value(position, bends))

    @every_index_bits
    def test_steeper_bends_lie_lower(self, index_bits: int) -> None:
        grid = Grid("phi", index_bits)
        inside = torch.arange(1 / 16, grid.half, 1 / 16)
        level = grid.value(inside, torch.arange(grid.bends).unsqueeze(-1))
        assert (level.diff(dim=0) < 0).all()

    def test_broadcasts_positions_against_bends(self) -> None:
        grid = Grid("phi", 4)
        position, bend = torch.randn(5, 1, 7), torch.arange(3).view(3, 1)
        level = grid.value(position, bend)
        assert level.shape == (5, 3, 7)
        assert torch.equal(level[:, 2], grid.value(position[:, 0], torch.tensor(2)))

    @pytest.mark.parametrize(("name", "bends"), [("phi", 8), ("golden", 1)])
    def test_number_of_bends(self, name: str, bends: int) -> None:
        assert Grid(name, 4).bends == bends


class TestRounding:
    @every_index_bits
    def test_phi_rounds_once_per_operation_in_the_documented_order(self, index_bits: int) -> None:
        grid = Grid("phi", index_bits)
        generator = torch.Generator().manual_seed(index_bits)
        places = every_position(index_bits, 8)
        position = places[torch.randint(len(places), (200,), generator=generator)]
        for bend in range(grid.bends):
            a, b = LINES[bend] / grid.half, BENDS[bend] / grid.half**3
            expected = [fp32(fp32(fp32(fp32(p * p) * b) + a) * p) for p in position.tolist()]
            assert grid.value(position, torch.tensor(bend)).tolist() == expected

    @every_index_bits
    def test_golden_rounds_once_per_operation_in_the_documented_order(
        self, index_bits: int
    ) -> None:
        grid = Grid("golden", index_bits)
        generator = torch.Generator().manual_seed(index_bits)
        places = every_position(index_bits, 8)
        position = places[torch.randint(len(places), (200,), generator=generator)]

        def level(p: float) -> float:
            low = int(2 * abs(p))
            left, right = (fp32(LADDER[h] / LADDER[2 * grid.half]) for h in (low, low + 1))
            size = fp32(fp32(fp32(right - left) * (2 * abs(p) - low)) + left)
            return -size if p < 0 else size

        expected = [level(p) for p in position.tolist()]
        assert grid.value(position, torch.tensor(0)).tolist() == expected
