"""Among equally many rows a row of x has the same product, bit for bit, wherever it is.

Drafting relies on it: a token is read alone, or after others that were drafted.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from phiquant import PhiConfig, PhiTensor
from tests.cuda.support import ON_A_GPU, same

pytestmark = ON_A_GPU
CONFIGS = [PhiConfig(deviation_bits=bits) for bits in (0, 2, 4, 8)] + [PhiConfig(exact=True)]
SHAPES = [(576, 576), (1536, 4096), (200, 14336), (37, 1533)]


@pytest.mark.parametrize("rows", [4, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_row_among_others(config: PhiConfig, dtype: torch.dtype, rows: int) -> None:
    for shape in SHAPES:
        torch.manual_seed(0)
        plain = torch.randn(shape, dtype=dtype, device="cuda") / 50
        weight = PhiTensor.from_hp(plain, config)
        x = torch.randn(rows, shape[1], dtype=dtype, device="cuda")
        found = functional.linear(x, weight)
        for row in range(rows):
            others = torch.randn_like(x)
            others[rows - 1 - row] = x[row]
            assert same(functional.linear(others, weight)[rows - 1 - row], found[row])
