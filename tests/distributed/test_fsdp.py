"""FSDP2: sharded compressed models answer as one process does."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import phiquant
from phiquant import PhiConfig, PhiTensor
from tests.distributed import support
from tests.support import compressed, same_bits

TIERS = {
    "index": PhiConfig(deviation_bits=0),
    "deviation": PhiConfig(),
    "exact": PhiConfig(exact=True),
}
INDICES = torch.arange(12).view(2, 6) * 7


class Model(nn.Module):
    """A tied head; rows that two ranks cannot share evenly, and a weight with a single row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(101, 128)
        self.up, self.down = nn.Linear(128, 192), nn.Linear(192, 128)
        self.one = nn.Linear(128, 1)
        self.head = nn.Linear(128, 101, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(indices)
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(x), self.one(x)


def sharded(tier: str, **how: object) -> tuple[nn.Module, nn.Module]:
    """A compressed model, and the same one that the ranks share."""
    torch.manual_seed(1)
    model = Model().bfloat16()
    phiquant.quantize_(model, TIERS[tier], progress=False)
    shared = copy.deepcopy(model)
    fully_shard(shared.up, **how)
    fully_shard(shared, **how)
    return model, shared


def assert_same(one: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        for mine, its in zip(one(INDICES), other(INDICES), strict=True):
            assert same_bits(mine, its)


def same_answers(mesh: DeviceMesh, tier: str) -> None:
    """The first time, and when memory that was freed is filled again."""
    model, shared = sharded(tier)
    for _ in range(2):
        assert_same(model, shared)
        shared.reshard()


def only_a_part_is_held(mesh: DeviceMesh, tier: str) -> None:
    model, shared = sharded(tier)
    for name, parameter in shared.named_parameters():
        whole = model.get_parameter(name)
        assert isinstance(parameter, DTensor)
        if parameter.dim() > 1:
            local = parameter.to_local()
            assert isinstance(local, PhiTensor)
            assert not parameter.requires_grad
            rows = -(-whole.shape[0] // mesh.size())
            start = min(rows * mesh.get_rank(), whole.shape[0])
            part = whole[start : start + rows]
            assert isinstance(part, PhiTensor)
            assert local.shape == part.shape
            assert local.numel() == 0 or same_bits(local.dequantize(), part.dequantize())


def full_tensors(mesh: DeviceMesh, tier: str) -> None:
    model, shared = sharded(tier)
    for name, parameter in shared.named_parameters():
        assert isinstance(parameter, DTensor)
        full, whole = parameter.full_tensor(), model.get_parameter(name)
        assert torch.equal(full, whole)


def reloaded(mesh: DeviceMesh, tier: str) -> None:
    model, shared = sharded(tier)
    shared.load_state_dict(shared.state_dict())
    assert_same(model, shared)


def another_dtype(mesh: DeviceMesh, tier: str) -> None:
    model, shared = sharded(tier, mp_policy=MixedPrecisionPolicy(param_dtype=torch.float32))
    assert_same(copy.deepcopy(model).float(), shared)


def gradients_of_inputs(mesh: DeviceMesh, tier: str) -> None:
    """A backward pass through frozen weights gathers them again."""
    model, shared = sharded(tier)
    x = torch.randn(3, 128, dtype=torch.bfloat16, requires_grad=True)
    (ours,) = torch.autograd.grad(model.up(x).sum(), x)
    (theirs,) = torch.autograd.grad(shared.up(x).sum(), x)
    assert same_bits(ours, theirs)


def a_convolution(mesh: DeviceMesh, tier: str) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(16, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 64))
    phiquant.quantize_(model, TIERS[tier], progress=False)
    shared, image = copy.deepcopy(model), torch.randn(2, 16, 8, 8)
    fully_shard(shared)
    with torch.no_grad():
        assert same_bits(model(image), shared(image))


CHECKS: list[support.Check] = [
    (check, (tier,))
    for check in (
        same_answers,
        only_a_part_is_held,
        full_tensors,
        reloaded,
        another_dtype,
        gradients_of_inputs,
        a_convolution,
    )
    for tier in TIERS
]


@pytest.fixture(scope="module")
def wrong() -> dict[str, str]:
    return support.run(CHECKS)


@pytest.mark.parametrize("check", [support.name(check) for check in CHECKS])
def test_two_ranks(wrong: dict[str, str], check: str) -> None:
    assert wrong[check] == ""


def test_shards_of_another_dimension_are_refused() -> None:
    shard = compressed(8, 64)
    mesh = SimpleNamespace(size=lambda: 2)
    with pytest.raises(ValueError, match="along its first dimension only"):
        shard.fsdp_pre_all_gather(mesh, torch.Size((8, 128)), (128, 1), None, None)
