"""Tiers of one model: the values of a shallower encoding, the memory of none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import phiquant
from phiquant.precision import TIERS, at_precision, view


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


class TestExact:
    @pytest.fixture
    def exact(self) -> nn.Module:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Embedding(20, 64), nn.Linear(64, 64), nn.Linear(64, 64)).eval()
        phiquant.quantize_(module, phiquant.PhiConfig(exact=True))
        return module

    def test_three_models_in_one(self, exact: nn.Module) -> None:
        kept, weight = dict(exact.named_parameters()), exact[1].weight.dequantize()
        for tier, bits in (("index", 4.25), ("deviation", 8.25)):
            with at_precision(exact, tier):
                assert exact[1].weight.bits_per_weight == bits
                assert not torch.equal(exact[1].weight.dequantize(), weight)
        with at_precision(exact, "exact"):
            assert torch.equal(exact[1].weight.dequantize(), weight)
            assert exact[1].weight.verify()
        assert all(p is kept[name] for name, p in exact.named_parameters())

    def test_layers_by_pattern(self, exact: nn.Module) -> None:
        with at_precision(exact, "deviation", "1"), at_precision(exact, "index", r"2\."):
            tiers = [(m.weight.deviation_bits, m.weight.is_exact) for m in exact]
            assert tiers == [(4, True), (4, False), (0, False)]
        mixed = view(view(exact, "deviation", "1"), "exact", "0|2")
        assert [m.weight.is_exact for m in mixed] == [True, False, True]

    @pytest.mark.parametrize("tier", TIERS)
    def test_a_view_allocates_no_weight_memory(self, exact: nn.Module, tier: str) -> None:
        weights = exact[0].weight.numel() + 2 * exact[1].weight.numel()
        with torch.profiler.profile(profile_memory=True) as profile:
            second = view(exact, tier)
        allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
        assert allocated < weights / 64  # a bit for eight weights would be more
        for mine, theirs in zip(second.parameters(), exact.parameters(), strict=True):
            if not isinstance(mine, phiquant.PhiTensor):
                assert mine is theirs
                continue
            for shared, plane in zip(mine.planes, theirs.planes, strict=True):
                assert shared is None or shared.data_ptr() == plane.data_ptr()
        assert second[1].weight.is_exact == (tier == "exact")

    def test_choosing_a_view_does_not_compile_again(self, exact: nn.Module) -> None:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        rows = torch.arange(6).view(2, 3)
        plain = {tier: view(exact, tier) for tier in TIERS}
        views = {
            tier: torch.compile(m, backend="aot_eager", fullgraph=True) for tier, m in plain.items()
        }
        with torch.no_grad():
            for module in views.values():
                module(rows)
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            assert graphs == len(TIERS)
            for tier in (*TIERS, *reversed(TIERS)):
                torch.testing.assert_close(views[tier](rows), plain[tier](rows))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
        assert not torch._dynamo.utils.counters["graph_break"]

    def test_a_remainder_that_is_not_there_is_named(self, exact: nn.Module) -> None:
        exact.append(nn.Linear(64, 64))
        phiquant.quantize_(exact)
        why = "has no remainder, so there is no tier 'exact': it was compressed without exact=True"
        with pytest.raises(ValueError, match=rf"^3\.weight: {why}"):
            view(exact, "exact")
        shallow = view(exact, "index")
        with (
            pytest.raises(ValueError, match=rf"^0\.weight: {why}, or this is a view of a"),
            at_precision(shallow, "exact"),
        ):
            pass
        assert shallow[1].weight.deviation_bits == 0


@pytest.mark.parametrize("tier", ["remainder", "8", 4], ids=str)
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


def test_int8_activations_belong_to_the_index_tier(model: nn.Module) -> None:
    x = torch.randn(3, 64)
    with at_precision(model, "index", r"inner\."):
        plain = model["inner"][0](x)
    with at_precision(model, "index", r"inner\.", activation="int8"):
        assert model["inner"][0].weight.activation == "int8"
        rounded = model["inner"][0](x)
    assert model["inner"][0].weight.activation is None
    assert (rounded - plain).norm() < 0.02 * plain.norm()
    with (
        pytest.raises(ValueError, match="needs the tier 'index'"),
        at_precision(model, "deviation", activation="int8"),
    ):
        pass
    with pytest.raises(ValueError, match="must be None, 'int8' or 'bf16'"):
        model["head"].weight.at(0, "int4")


def test_bf16_activations_belong_to_deviations(model: nn.Module) -> None:
    x = torch.randn(1, 64)
    plain, rounded = view(model, "deviation"), view(model, "deviation", activation="bf16")
    found, wanted = rounded["inner"][0](x), plain["inner"][0](x)
    assert found.dtype == wanted.dtype
    assert (found - wanted).norm() < 0.01 * wanted.norm()
    with pytest.raises(ValueError, match="needs the tier 'deviation'"):
        view(model, "index", activation="bf16")
    with pytest.raises(ValueError, match="indices alone take 'int8'"):
        model["head"].weight.at(0, "bf16")


def test_a_view_with_int8_activations_compiles_and_copies(model: nn.Module) -> None:
    draft = view(model, "index", activation="int8")
    layer, x = draft["inner"][0], torch.randn(3, 64)
    with torch.no_grad():
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
        assert torch.equal(compiled, layer(x))
    assert layer.weight.detach().clone().activation == "int8"
