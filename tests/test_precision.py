"""Tiers of one model: the values of a shallower encoding, the memory of none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import phiquant
from phiquant.precision import at_precision, view


@pytest.fixture
def model() -> nn.Module:
    """Embedding and head are tied; the batch norm has buffers."""
    module = nn.ModuleDict(
        {
            "embedding": nn.Embedding(96, 64),
            "inner": nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)),
            "head": nn.Linear(64, 96, bias=False),
        }
    )
    module["head"].weight = module["embedding"].weight
    phiquant.quantize_(module, phiquant.PhiConfig(deviation_bits=8))
    return module.eval()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.dequantize() for name, p in model.named_parameters() if p.dim() > 1}


def test_the_index_tier_lasts_as_long_as_the_block(model: nn.Module) -> None:
    deep, kept = weights(model), dict(model.named_parameters())
    with at_precision(model, "index"):
        for name, weight in weights(model).items():
            assert torch.equal(weight, kept[name].at(0).dequantize())
            assert not torch.equal(weight, deep[name])
    assert all(p is kept[name] for name, p in model.named_parameters())


def test_an_error_inside_the_block_restores_the_depth(model: nn.Module) -> None:
    before = model["head"].weight
    with pytest.raises(KeyError), at_precision(model, "index"):
        raise KeyError
    assert model["head"].weight is before


def test_a_pattern_chooses_layers(model: nn.Module) -> None:
    with at_precision(model, "index", r"inner\."):
        assert model["inner"][0].weight.deviation_bits == 0
        assert model["head"].weight.deviation_bits == 8


def test_a_view_shares_all_memory(model: nn.Module) -> None:
    draft = view(model, "index")
    assert draft["inner"][0].weight.deviation_plane is None
    for mine, theirs in zip(draft.parameters(), model.parameters(), strict=True):
        if isinstance(mine, phiquant.PhiTensor):
            mine, theirs = mine.index_plane, theirs.index_plane
        assert mine.data_ptr() == theirs.data_ptr()
    for mine, theirs in zip(draft.buffers(), model.buffers(), strict=True):
        assert mine is theirs


def test_a_view_leaves_the_model_as_it_was_and_keeps_ties(model: nn.Module) -> None:
    draft = view(model, "index")
    assert model["head"].weight.deviation_bits == 8
    assert draft["head"].weight is draft["embedding"].weight
    assert draft["head"].weight.fqn == model["head"].weight.fqn


def test_views_and_model_compile_once_each(model: nn.Module) -> None:
    x = torch.randn(3, 64)
    torch.compiler.reset()
    for module in (model["inner"], view(model["inner"], "index")):
        compiled = torch.compile(module, fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), module(x))
            with torch.compiler.set_stance("fail_on_recompile"):
                torch.testing.assert_close(compiled(-x), module(-x))


@pytest.mark.parametrize("tier", ["exact", "8", 4], ids=str)
def test_an_unknown_tier_is_an_error(model: nn.Module, tier: object) -> None:
    with pytest.raises(ValueError, match="tier must be one of"):
        view(model, tier)  # type: ignore[arg-type]


def test_a_plain_model_is_an_error() -> None:
    with pytest.raises(ValueError, match="no parameter is compressed"):
        view(nn.Linear(4, 4), "index")


def test_a_pattern_that_matches_nothing_is_an_error(model: nn.Module) -> None:
    with (
        pytest.raises(ValueError, match="no parameter matches 'outer'"),
        at_precision(model, "index", "outer"),
    ):
        pass
