"""torch.compile without graph breaks, and torch.export, on compressed models."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional

import phiquant
from phiquant import PhiConfig, PhiTensor
from tests.support import TiedModel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad": torch.enable_grad,
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model() -> nn.Module:
    model = TiedModel().eval()
    phiquant.quantize_(model)
    return model


class Graphs:
    """A backend that counts the graphs and runs them as they are."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward


def indices(*shape: int) -> Tensor:
    return torch.randint(0, 100, shape)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("mode", MODES)
def test_one_graph_gives_the_same_numbers(
    model: nn.Module, mode: str, dynamic: bool | None
) -> None:
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    with MODES[mode]():
        for shape in ((2, 7), (3, 9), (4, 30)):
            batch = indices(*shape)
            torch.testing.assert_close(compiled(batch), model(batch))


class TestExact:
    @pytest.fixture
    def exact(self) -> nn.Module:
        model = TiedModel(layers=1).eval()
        model.layers[0].weight.data[3, 5] = float("inf")
        phiquant.quantize_(model, PhiConfig(exact=True))
        model.layers[0].weight.exception_plane[:, 1] = 0x3F800000  # a product of it is a number
        return model

    @pytest.mark.parametrize("mode", MODES)
    def test_one_graph_gives_the_same_numbers(self, exact: nn.Module, mode: str) -> None:
        compiled = torch.compile(exact, fullgraph=True)
        with MODES[mode]():
            batch = indices(2, 7)
            torch.testing.assert_close(compiled(batch), exact(batch))

    def test_slices_in_a_graph(self) -> None:
        def uses(layer: nn.Linear, x: Tensor) -> list[Tensor]:
            weight = layer.weight
            return [
                functional.linear(x, weight[3:9]),
                functional.linear(x[:, 512:], weight[:, 512:]),
                functional.linear(x[:, 7:600], weight[2:4, 7:600]),
                weight[3] * 2,
            ]

        layer = nn.Linear(1100, 16)
        phiquant.quantize_(layer, PhiConfig(exact=True))
        x = torch.randn(3, 1100)
        compiled = torch.compile(uses, fullgraph=True)
        with torch.no_grad():
            for ours, theirs in zip(compiled(layer, x), uses(layer, x), strict=True):
                torch.testing.assert_close(ours, theirs)

    @torch._dynamo.config.patch(
        force_parameter_static_shapes=False, force_nn_module_property_static_shapes=False
    )
    def test_layers_whose_remainders_differ_in_size_share_a_graph(self) -> None:
        """If parameters may have dynamic sizes; torch takes them for static otherwise."""
        layers = [nn.Linear(128, 128) for _ in range(5)]
        phiquant.quantize_(nn.ModuleList(layers), PhiConfig(exact=True))
        assert len({layer.weight.remainder_plane.numel() for layer in layers}) > 2
        graphs, x = Graphs(), torch.randn(3, 128)
        compiled = torch.compile(nn.Linear.forward, backend=graphs, fullgraph=True)
        with torch.no_grad():
            for layer in layers:
                assert torch.equal(compiled(layer, x), layer(x))
        assert len(graphs.graphs) <= 2  # the second learns that the size is any

    def test_broken_planes_are_told_with_the_name(self, exact: nn.Module) -> None:
        compiled = torch.compile(exact, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            compiled(indices(2, 7))
            exact.layers[0].weight.start_plane[0] = 1 << 40
            with pytest.raises(ValueError, match="remainder: block 0 "):
                compiled(indices(2, 7))

    def test_it_is_exported(self, exact: nn.Module) -> None:
        batch = indices(2, 7)
        with torch.no_grad():
            program = torch.export.export(exact, (batch,))
        assert torch.equal(program.module()(batch), exact(batch))


@pytest.mark.parametrize("deviation_bits", [0, 2, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_tiers_and_dtypes(dtype: torch.dtype, deviation_bits: int) -> None:
    model = TiedModel(layers=1).to(dtype).eval()
    phiquant.quantize_(model, PhiConfig(5, deviation_bits, 32))
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        batch = indices(2, 5)
        torch.testing.assert_close(compiled(batch), model(batch), atol=2e-2, rtol=2e-2)


def test_gradients_pass_through_the_graph(model: nn.Module) -> None:
    model.layers[0] = nn.Linear(128, 128)
    batch = indices(2, 7)
    gradients = []
    for run in (torch.compile(model, fullgraph=True), model):
        model.zero_grad()
        run(batch).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def called_by_graphs(run: Callable[[Tensor], Tensor], x: Tensor) -> list[Any]:
    """The targets of the graphs that autograd has been traced into."""
    targets: list[Any] = []

    def note(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        targets.extend(node.target for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=note, bw_compiler=note)
    compiled = torch.compile(run, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x), run(x))
    return targets


@pytest.mark.parametrize("mode", MODES)
def test_a_graph_without_gradients_calls_the_op_that_has_no_formula(mode: str) -> None:
    layer = nn.Linear(128, 16).requires_grad_(False)
    phiquant.quantize_(layer)
    with MODES[mode]():
        targets = called_by_graphs(layer, torch.randn(3, 128))
    assert torch.ops.phiquant._linear.default in targets
    assert torch.ops.phiquant.linear.default not in targets


@pytest.mark.parametrize("trained", ["input", "bias"])
def test_a_graph_with_gradients_calls_the_public_op(trained: str) -> None:
    layer = nn.Linear(128, 16).requires_grad_(False)
    phiquant.quantize_(layer)
    layer.bias.requires_grad_(trained == "bias")
    targets = called_by_graphs(layer, torch.randn(3, 128, requires_grad=trained == "input"))
    assert torch.ops.phiquant.linear.default in targets
    assert torch.ops.phiquant._linear.default not in targets


def test_autocast(model: nn.Module) -> None:
    batch = indices(2, 7)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = compiled(batch), model(batch)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, atol=0.1, rtol=2e-2)


def test_layers_of_equal_shape_share_a_graph() -> None:
    layers = [nn.Linear(128, 128) for _ in range(4)]
    layers[2].weight.data.mul_(7)
    for i, layer in enumerate(layers):
        phiquant.quantize_(nn.ModuleDict({f"layer{i}": layer}))
    graphs = Graphs()
    compiled = torch.compile(nn.Linear.forward, backend=graphs, fullgraph=True)
    x = torch.randn(3, 128)
    with torch.no_grad():
        for layer in layers:
            assert torch.equal(compiled(layer, x), layer(x))
    assert len(graphs.graphs) == 1


def test_new_values_of_equal_layout_need_no_new_graph(model: nn.Module) -> None:
    graphs = Graphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    other = TiedModel().eval()
    phiquant.quantize_(other)
    batch = indices(2, 7)
    with torch.no_grad():
        before = compiled(batch)
        model.load_state_dict(other.state_dict())
        assert torch.equal(compiled(batch), other(batch))
    assert not torch.equal(before, other(batch))
    assert len(graphs.graphs) == 1


def test_another_exponent_is_not_taken_for_the_old_one() -> None:
    layer, huge = nn.Linear(128, 16), nn.Linear(128, 16)
    huge.weight.data.mul_(1e6)
    for module in (layer, huge):
        phiquant.quantize_(module)
    assert layer.weight.exponent != huge.weight.exponent
    compiled = torch.compile(layer, backend=Graphs(), fullgraph=True)
    x = torch.randn(3, 128)
    with torch.no_grad():
        compiled(x)
        layer.load_state_dict(huge.state_dict())
        assert torch.equal(compiled(x), huge(x))


@pytest.mark.filterwarnings("ignore:.*has no compressed form")
def test_modules_that_read_their_weight() -> None:
    def uses(layer: nn.Linear, x: Tensor) -> list[Tensor]:
        weight = layer.weight
        return [
            x @ weight.T,
            functional.linear(x, weight * 2),
            functional.linear(x[:, 64:], weight[:, 64:]),
            weight[3].abs().amax(),
            functional.linear(x, weight.view(8, 2, 128).view(16, 128)[:5]),
        ]

    layer = nn.Linear(128, 16)
    phiquant.quantize_(layer)
    x = torch.randn(3, 128)
    compiled = torch.compile(uses, fullgraph=True)
    with torch.no_grad():
        for ours, theirs in zip(compiled(layer, x), uses(layer, x), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_wrong_shapes_are_told_while_compiling(model: nn.Module) -> None:
    layer = torch.compile(model.layers[0], fullgraph=True)
    with pytest.raises(Exception, match="x: expected a last dimension of 128"):
        layer(torch.randn(2, 64))


class TestExport:
    @pytest.mark.parametrize("mode", ["no_grad", "grad"])
    @pytest.mark.parametrize("strict", [False, True])
    def test_the_program_runs(self, model: nn.Module, strict: bool, mode: str) -> None:
        batch = indices(2, 7)
        with MODES[mode]():
            program = torch.export.export(model, (batch,), strict=strict)
        assert torch.equal(program.module()(batch), model(batch))

    @pytest.mark.parametrize("strict", [False, True])
    def test_shapes_may_be_dynamic(self, model: nn.Module, strict: bool) -> None:
        shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
        program = torch.export.export(model, (indices(2, 7),), dynamic_shapes=shapes, strict=strict)
        for shape in ((5, 3), (2, 40)):
            batch = indices(*shape)
            torch.testing.assert_close(program.module()(batch), model(batch))

    def test_the_program_can_be_saved(self, model: nn.Module) -> None:
        batch, file = indices(2, 7), io.BytesIO()
        with torch.no_grad():
            torch.export.save(torch.export.export(model, (batch,)), file)
        file.seek(0)
        assert torch.equal(torch.export.load(file).module()(batch), model(batch))

    def test_decompositions_end_in_the_ops(self, model: nn.Module) -> None:
        batch = indices(2, 7)
        with torch.no_grad():
            program = torch.export.export(model, (batch,)).run_decompositions({})
        targets = [node.target for node in program.graph.nodes]
        assert targets.count(torch.ops.phiquant.linear.default) == 3
        assert targets.count(torch.ops.phiquant.embedding.default) == 1
        assert torch.equal(program.module()(batch), model(batch))


def test_a_frozen_weight_can_be_an_argument() -> None:
    tensor = PhiTensor.from_hp(torch.randn(16, 128))
    graphs = Graphs()
    compiled = torch.compile(functional.linear, backend=graphs, fullgraph=True)
    x = torch.randn(3, 128)
    for weight in (tensor, tensor.clone(), PhiTensor.from_hp(torch.randn(16, 128))):
        assert torch.equal(compiled(x, weight), functional.linear(x, weight))
    assert len(graphs.graphs) == 1
