"""Which dtype an exact weight is stored in: the narrowest that keeps every bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from phiquant.codec.exceptions import widened_bits
from phiquant.encoding import narrowed
from tests.support import weight, with_specials


def bits(*numbers: int) -> Tensor:
    return torch.tensor(numbers).to(torch.int32).view(torch.float32)


@pytest.mark.parametrize(
    ("of", "stored"),
    [
        pytest.param(weight(4, 64).bfloat16().float(), torch.bfloat16, id="bf16 numbers"),
        pytest.param(weight(4, 64).half().float(), torch.float16, id="fp16 numbers"),
        pytest.param(weight(4, 64), torch.float32, id="fp32 numbers"),
        pytest.param(torch.zeros(4, 64), torch.bfloat16, id="zeros"),
        pytest.param(torch.tensor([-0.0, 2.0**-149 * 2**16]), torch.bfloat16, id="bf16 denormal"),
        pytest.param(torch.tensor([1 + 2.0**-10, 2.0**-24]), torch.float16, id="fp16 denormal"),
        pytest.param(torch.tensor([1 + 2.0**-10, 2.0**-25]), torch.float32, id="below fp16"),
        pytest.param(torch.tensor([1 + 2.0**-10, 65536.0]), torch.float32, id="above fp16"),
        pytest.param(torch.tensor([float("inf"), 1.0]), torch.bfloat16, id="infinity"),
        pytest.param(bits(0x7FC10000, 0x7F810000), torch.bfloat16, id="payloads that fit bf16"),
        pytest.param(bits(0x7FC02000, 0x3F802000), torch.float16, id="a payload that fits fp16"),
        pytest.param(bits(0x7FC00001), torch.float32, id="a payload that fits fp32 alone"),
    ],
)
def test_no_bit_is_lost(of: Tensor, stored: torch.dtype) -> None:
    narrow = narrowed(of.view(1, -1))
    assert narrow.dtype == stored
    assert narrow.shape == (1, of.numel())
    assert torch.equal(widened_bits(narrow), widened_bits(of.view(1, -1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_narrow_weight_is_stored_as_it_is(dtype: torch.dtype) -> None:
    of = with_specials(weight(2, 64, dtype=dtype))
    assert narrowed(of) is of


def test_denormals_count_where_the_program_flushes_them() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    assert narrowed(bits(0x3F802000, 0x00002000).view(1, -1)).dtype == torch.float32
