"""transformers' tp_plan: compressed while loading, and read from a compressed checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig

import phiquant
from phiquant import PhiQuantConfig, PhiTensor
from phiquant.integrations.hf_parallel import held, is_shared
from tests.distributed import support
from tests.integrations.support import assert_same, llama, load, prompt, saved

TIERS: dict[str, dict[str, Any]] = {
    "index": {"deviation_bits": 0},
    "deviation": {},
    "exact": {"exact": True},
}
FOLDER = "TWO_RANKS_MODELS"  # the variable that tells both ranks where the models are
UNALIGNED = ("o_proj", "down_proj")  # of the narrow model: 64 columns, two ranks, groups of 64


def mixtral() -> PreTrainedModel:
    config = MixtralConfig(
        vocab_size=130,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=64,
    )
    return MixtralForCausalLM(config).eval()


MODELS = {
    "llama": lambda: llama(hidden_size=128, intermediate_size=256),
    "narrow": lambda: llama(intermediate_size=160),
    "mixtral": mixtral,
}


def stored(name: str) -> Path:
    return Path(os.environ[FOLDER], name)


def shared_by_two() -> dict[str, Any]:
    """Made anew for each model: it reads the number of ranks when it is made."""
    return {"distributed_config": DistributedConfig(tp_plan="auto")}


def settings(tier: str) -> dict[str, Any]:
    return {"quantization_config": PhiQuantConfig(**TIERS[tier]), "dtype": torch.float32}


def compressed(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if isinstance(held(p), PhiTensor)}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(**prompt()).logits


def compressed_while_loading(mesh: DeviceMesh, kind: str, tier: str) -> None:
    model = load(stored(kind), **settings(tier))
    shared = load(stored(kind), **shared_by_two(), **settings(tier))
    assert compressed(shared) == compressed(model)
    assert_same_answers(model, shared)
    assert {n for c in shared.hf_quantizer.report.compressed for n in c.names} >= compressed(shared)


def read_from_a_checkpoint(mesh: DeviceMesh, kind: str, tier: str) -> None:
    where = stored(f"{kind}-{tier}")
    model, shared = (load(where, dtype=torch.float32, **how) for how in ({}, shared_by_two()))
    assert compressed(shared) == compressed(model)
    assert_same_answers(model, shared)


def assert_same_answers(model: Any, shared: Any) -> None:
    """But for the order of sums: each rank adds up its own columns first."""
    parts = [p for p in shared.parameters() if is_shared(p)]
    assert parts
    assert not any(p.requires_grad for p in parts if isinstance(held(p), PhiTensor))
    torch.testing.assert_close(logits(shared), logits(model))
    torch.testing.assert_close(shared(**prompt()).logits.detach(), logits(model))  # with gradients
    tokens = [m.generate(**prompt(), max_new_tokens=3, do_sample=False) for m in (model, shared)]
    assert torch.equal(*tokens)


def saved_by_all_ranks(mesh: DeviceMesh, kind: str, tier: str) -> None:
    """One process reads what two wrote: the planes of the whole, with their checksums."""
    shared = load(stored(f"{kind}-{tier}"), dtype=torch.float32, **shared_by_two())
    shared.save_pretrained(stored(f"again-{kind}-{tier}"))
    ours, theirs = (load(stored(f"{how}{kind}-{tier}")) for how in ("again-", ""))
    assert_same(ours, theirs)
    if tier == "exact":
        assert phiquant.verify(ours)


def groups_that_ranks_would_cut(mesh: DeviceMesh) -> None:
    """They stay as they were, and the report says so; the rest is compressed."""
    shared = load(stored("narrow"), **shared_by_two(), **settings("deviation"))
    names = {name for name, _ in shared.named_parameters()}
    left = {name for name in names if any(leaf in name for leaf in UNALIGNED)}
    assert left
    reasons = {n: s.reason for s in shared.hf_quantizer.report.skipped for n in s.names}
    assert all("2 ranks share it, and columns" in reasons[name] for name in left)
    assert not left & compressed(shared)
    assert len(compressed(shared)) == len(names) - len(left) - 5  # norms


def stored_groups_that_ranks_would_cut(mesh: DeviceMesh) -> None:
    """Their decoded parts are kept: the answers are those of the whole."""
    with pytest.warns(UserWarning, match="are not whole groups of 64.*keeps its part decoded"):
        shared = load(stored("narrow-deviation"), **shared_by_two(), dtype=torch.float32)
    assert_same_answers(load(stored("narrow-deviation"), dtype=torch.float32), shared)


def a_broken_part(mesh: DeviceMesh) -> None:
    """NaN in the part of one rank ends the load of all, by an error and not by waiting."""
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight: "):
        load(stored("broken"), **shared_by_two(), **settings("deviation"))


CASES = [(kind, tier) for kind in ("llama", "mixtral") for tier in TIERS]
CHECKS: list[support.Check] = [
    *((compressed_while_loading, case) for case in CASES),
    *((read_from_a_checkpoint, case) for case in CASES),
    *((saved_by_all_ranks, case) for case in CASES),
    (groups_that_ranks_would_cut, ()),
    (stored_groups_that_ranks_would_cut, ()),
    (a_broken_part, ()),
]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(tmp_path_factory.mktemp("models")))
        torch.manual_seed(0)
        for kind, make in MODELS.items():
            saved(make(), stored(kind))
            for tier in TIERS:
                load(stored(kind), **settings(tier)).save_pretrained(stored(f"{kind}-{tier}"))
        broken = MODELS["llama"]()
        broken.model.layers[1].mlp.up_proj.weight.data[-1, 3] = torch.nan
        saved(broken, stored("broken"))
        return support.run(CHECKS)


@pytest.mark.parametrize("check", [support.name(check) for check in CHECKS])
def test_two_ranks(wrong: dict[str, str], check: str) -> None:
    assert wrong[check] == ""
