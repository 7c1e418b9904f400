"""DTensor: weights cut, scattered and gathered; parallelize_module against one process."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import Placement, _StridedShard

import phiquant
from phiquant import PhiConfig, PhiTensor
from phiquant.sharding import local_shard
from tests.distributed import support
from tests.support import same_bits, weight, with_specials

TIERS = {
    "index": PhiConfig(deviation_bits=0),
    "deviation": PhiConfig(),
    "exact": PhiConfig(exact=True),
}
PLACEMENTS: dict[str, Placement] = {
    "rows": Shard(0),
    "columns": Shard(1),
    "copies": Replicate(),
    "fused": _StridedShard(0, split_factor=2),
}


def tensor(shape: tuple[int, ...], tier: str, seed: int = 0) -> PhiTensor:
    plain = weight(*shape, dtype=torch.bfloat16, seed=seed)
    special = with_specials(plain) if tier == "exact" else plain
    return PhiTensor.from_hp(special, TIERS[tier], name=tier)


def plain(values: Tensor) -> Tensor:
    return values.dequantize() if isinstance(values, PhiTensor) else values


def distributed_by_one_rank(mesh: DeviceMesh, tier: str, rows: int, placement: str) -> None:
    """What rank 0 has is sent; the other rank has other values, and sees those of rank 0."""
    ours = tensor((rows, 1024), tier, seed=mesh.get_rank())
    theirs = tensor((rows, 1024), tier)
    sent = distribute_tensor(nn.Parameter(ours, False), mesh, [PLACEMENTS[placement]])
    assert isinstance(sent.to_local(), PhiTensor)
    assert same_bits(plain(sent.full_tensor()), theirs.dequantize())


def cut_by_every_rank(mesh: DeviceMesh, tier: str, rows: int, placement: str) -> None:
    whole = tensor((rows, 1024), tier)
    place = [PLACEMENTS[placement]]
    held = distribute_tensor(nn.Parameter(whole, False), mesh, place, src_data_rank=None)
    assert isinstance(held.to_local(), PhiTensor)
    assert same_bits(plain(held.full_tensor()), whole.dequantize())
    local = local_shard(whole, held)
    assert isinstance(local, PhiTensor)
    assert same_bits(local.dequantize(), held.to_local().dequantize())


def borders_inside_a_group(mesh: DeviceMesh, tier: str) -> None:
    """An exact weight is encoded anew; of a lossy one the ranks keep decoded parts."""
    whole = tensor((6, 160), tier)
    place = distribute_tensor(torch.empty(6, 160, device="meta"), mesh, [Shard(1)])
    if tier == "exact":
        local = local_shard(whole, place)
        assert isinstance(local, PhiTensor)
    else:
        with pytest.warns(UserWarning, match=r"columns \d+:\d+ are not whole groups of 64"):
            local = local_shard(whole, place)
        assert not isinstance(local, PhiTensor)
    start = 80 * mesh.get_rank()
    expected = whole.dequantize()[:, start : start + 80].contiguous()
    assert same_bits(plain(local), expected)


def shards_with_other_exponents(mesh: DeviceMesh) -> None:
    """A shard of large weights has another exponent; the whole has one that says both."""
    own = weight(8, 128) * (1.0 if mesh.get_rank() else 1000.0)
    local = PhiTensor.from_hp(own)
    assert local.exponent == (-10 if mesh.get_rank() else -6)
    whole = DTensor.from_local(local, mesh, [Shard(0)]).full_tensor()
    assert isinstance(whole, PhiTensor)
    mine = 8 * mesh.get_rank()
    assert same_bits(whole[mine : mine + 8].dequantize(), local.dequantize())


def shards_that_stored_other_dtypes(mesh: DeviceMesh) -> None:
    """bf16 numbers in an fp32 weight are stored as bf16; the other rank's shard has fp32 ones."""
    both = [weight(8, 128), weight(8, 128, dtype=torch.bfloat16).float()]
    local = PhiTensor.from_hp(both[mesh.get_rank()], TIERS["exact"])
    whole = DTensor.from_local(local, mesh, [Shard(0)]).full_tensor()
    assert same_bits(plain(whole), torch.cat(both))


def exponents_without_a_common_one(mesh: DeviceMesh) -> None:
    own = weight(8, 128) * (1.0 if mesh.get_rank() else 1e30)
    shared = DTensor.from_local(PhiTensor.from_hp(own), mesh, [Shard(0)])
    with pytest.raises(ValueError, match="the scales of its shards have no common exponent"):
        shared.full_tensor()


def other_shapes(mesh: DeviceMesh) -> None:
    whole = tensor((8, 128), "deviation")
    place = distribute_tensor(torch.empty(8, 64, device="meta"), mesh, [Shard(0)])
    with pytest.raises(ValueError, match=r"has shape \(8, 128\), .* has \(8, 64\)"):
        local_shard(whole, place)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(101, 128)
        self.up, self.down = nn.Linear(128, 1024), nn.Linear(1024, 128)
        self.out = nn.Linear(128, 7)

    def forward(self, indices: Tensor) -> Tensor:
        x = self.embed(indices)
        return self.out(x + self.down(torch.relu(self.up(x))))


PLAN = {
    "embed": RowwiseParallel(input_layouts=Replicate()),
    "up": ColwiseParallel(),
    "down": RowwiseParallel(),
    "out": ColwiseParallel(output_layouts=Replicate()),
}


def parallel_modules(mesh: DeviceMesh, tier: str, source: int | None) -> None:
    """All weights in shards, uneven ones too; every sum of partial sums is rounded anew."""
    model, indices = Model(), torch.arange(12).view(2, 6) * 7
    phiquant.quantize_(model, TIERS[tier], progress=False)
    parallel = parallelize_module(copy.deepcopy(model), mesh, PLAN, src_data_rank=source)
    for parameter in parallel.parameters():
        assert isinstance(parameter, DTensor)
        assert isinstance(parameter.to_local(), PhiTensor) == (parameter.dim() > 1)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            torch.testing.assert_close(parallel(indices), model(indices))


def a_compiled_parallel_module(mesh: DeviceMesh) -> None:
    model, x = (
        nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 64)),
        torch.randn(3, 128),
    )
    phiquant.quantize_(model, progress=False)
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallel = parallelize_module(copy.deepcopy(model), mesh, plan, src_data_rank=None)
    compiled = torch.compile(parallel, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


CHECKS: list[support.Check] = [
    *((distributed_by_one_rank, (t, 64, p)) for t in TIERS for p in PLACEMENTS),
    *((distributed_by_one_rank, (t, 65, "rows")) for t in TIERS),
    *((cut_by_every_rank, (t, 64, p)) for t in TIERS for p in PLACEMENTS),
    *((cut_by_every_rank, (t, 65, "rows")) for t in TIERS),
    *((borders_inside_a_group, (t,)) for t in TIERS),
    (shards_with_other_exponents, ()),
    (shards_that_stored_other_dtypes, ()),
    (exponents_without_a_common_one, ()),
    (other_shapes, ()),
    *((parallel_modules, (t, source)) for t in TIERS for source in (0, None)),
    (a_compiled_parallel_module, ()),
]


@pytest.fixture(scope="module")
def wrong() -> dict[str, str]:
    return support.run(CHECKS)


@pytest.mark.parametrize("check", [support.name(check) for check in CHECKS])
def test_two_ranks(wrong: dict[str, str], check: str) -> None:
    assert wrong[check] == ""
