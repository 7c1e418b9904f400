"""Where planes lie: addresses, pinned memory, and values that are nowhere in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from phiquant import PhiTensor
from tests.aten.support import silently
from tests.support import compressed


def test_an_address_tells_weights_apart(matrix: PhiTensor) -> None:
    addresses = [matrix, matrix.detach(), matrix.t(), matrix.clone(), compressed(16, 192)]
    shared, *others = (silently(tensor.data_ptr) for tensor in addresses)
    assert shared == matrix.index_plane.data_ptr() != 0
    assert others[:2] == [shared, shared]
    assert len({shared, *others[2:]}) == 3
    assert matrix.to("meta").data_ptr() == 0


@pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
def test_ordinary_memory_is_not_pinned(exact: bool) -> None:
    assert silently(compressed(4, 600, exact=exact).is_pinned) is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can pin memory")
def test_pinning_without_an_accelerator_fails_as_for_a_plain_tensor(matrix: PhiTensor) -> None:
    with pytest.raises(RuntimeError) as plain:
        torch.zeros(3).pin_memory()
    with pytest.raises(RuntimeError) as ours:
        silently(matrix.pin_memory)
    assert str(ours.value) == str(plain.value)


@pytest.mark.cuda
def test_every_plane_is_pinned() -> None:
    tensor = compressed(4, 600, exact=True)
    pinned = silently(tensor.pin_memory)
    assert silently(pinned.is_pinned)
    planes = (*pinned.planes, pinned.checksum_plane)
    assert all(plane.is_pinned() for plane in planes if plane is not None)
    assert torch.equal(pinned, tensor)


@pytest.mark.parametrize(
    ("ask", "instead"),
    [
        pytest.param(lambda t: t.numpy(), r"use \.dequantize\(\)\.numpy\(\)", id="numpy"),
        pytest.param(
            lambda t: t.view(torch.int32), r"use \.dequantize\(\)\.view\(torch\.int32\)", id="view"
        ),
    ],
)
def test_values_that_are_not_in_memory(
    matrix: PhiTensor, ask: Callable[[PhiTensor], Any], instead: str
) -> None:
    with pytest.raises(
        RuntimeError, match=rf"^block\.weight: .*{instead}.*offload_\(model, folder"
    ):
        ask(matrix)


def test_a_view_of_the_same_dtype_is_itself(matrix: PhiTensor) -> None:
    view = silently(lambda: matrix.view(torch.float32))
    assert isinstance(view, PhiTensor)
    assert view.data_ptr() == matrix.data_ptr()
