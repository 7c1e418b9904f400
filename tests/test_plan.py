"""Which parameters are compressed, and the reasons that are given for the others."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from phiquant import PhiConfig, PhiTensor
from phiquant.plan import Slot, plan, why_it_grew
from tests.support import TiedModel, noise


def reasons(model: nn.Module, config: PhiConfig | None = None) -> dict[str, str]:
    """The reason of every parameter; empty for those that are compressed."""
    slots = plan(model, config or PhiConfig(), None)
    assert all((slot.config is None) == bool(slot.reason) for slot in slots)
    return {name: slot.reason for slot in slots for name in slot.names}


def old_style(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wrap(nn.Linear(128, 64))


@pytest.mark.parametrize(
    ("make", "leaf", "reason"),
    [
        (lambda: nn.Linear(128, 64), "bias", "a bias is not a weight matrix"),
        (
            lambda: nn.Conv2d(64, 64, 3, groups=64),
            "weight",
            r"would not shrink \(rows of 9 in groups of 64\)",
        ),
        (lambda: nn.LazyConv2d(64, 3), "weight", "not initialised yet; run the module once first"),
        (lambda: nn.EmbeddingBag(100, 64), "weight", "EmbeddingBag runs in a fused kernel"),
        (lambda: nn.Bilinear(64, 64, 64), "weight", "Bilinear runs in a fused kernel"),
        (lambda: nn.LSTM(64, 64), "weight_ih_l0", "LSTM runs in a fused kernel that takes plain"),
        (lambda: nn.GRU(64, 64), "weight_hh_l0", "GRU runs in a fused kernel that takes plain"),
        (lambda: nn.RNN(64, 64), "weight_hh_l0", "RNN runs in a fused kernel that takes plain"),
        (lambda: nn.LSTMCell(64, 64), "weight_ih", "LSTMCell runs in a fused kernel"),
        (lambda: nn.LayerNorm(64), "weight", "LayerNorm is not a layer whose weights are"),
        (
            lambda: nn.MultiheadAttention(64, 4, add_bias_kv=True),
            "bias_k",
            "a bias_k is not a weight matrix",
        ),
        (
            lambda: nn.Embedding(99, 64, max_norm=1.0),
            "weight",
            "an embedding with max_norm writes to its weight",
        ),
        (lambda: nn.Linear(128, 64).double(), "weight", "expected .*, got torch.float64"),
        (lambda: nn.Linear(128, 64, dtype=torch.complex64), "weight", "got torch.complex64"),
        (lambda: nn.Linear(128, 0), "weight", r"expected a non-empty tensor, got shape \(0, 128\)"),
        (lambda: nn.Linear(0, 64), "weight", r"expected a non-empty tensor, got shape \(64, 0\)"),
        (lambda: nn.LazyLinear(64), "weight", "not initialised yet; run the module once first"),
        (lambda: nn.LazyLinear(64), "bias", "a bias is not a weight matrix"),
        (lambda: nn.Linear(16, 64), "weight", r"would not shrink \(rows of 16 in groups of 64\)"),
        (lambda: old_style(nn.utils.weight_norm), "weight_v", "weight is computed from it"),
        (lambda: old_style(nn.utils.spectral_norm), "weight_orig", "weight is computed from it"),
        (
            lambda: prune.l1_unstructured(nn.Linear(128, 64), "weight", 0.5),
            "weight_orig",
            "weight is computed from it",
        ),
        (
            lambda: parametrizations.weight_norm(nn.Linear(128, 64)),
            "parametrizations.weight.original1",
            "weight is computed from it",
        ),
        (
            lambda: parametrizations.spectral_norm(nn.Linear(128, 64)),
            "parametrizations.weight.original",
            "weight is computed from it",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_reasons(make: Callable[[], nn.Module], leaf: str, reason: str) -> None:
    model = nn.Sequential(make())
    (slot,) = (s for s in plan(model, PhiConfig(), None) if f"0.{leaf}" in s.names)
    assert slot.config is None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(slot.reason)
    assert slot.stored_bytes == slot.bytes


def test_the_weights_that_are_compressed() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T * 2

    model = nn.ModuleDict(
        {
            "linear": nn.Linear(128, 8, bias=False),
            "embedding": nn.Embedding(10, 128, padding_idx=0, sparse=True),
            "subclass": Scaled(128, 8, bias=False),
            "short": nn.Linear(40, 8, bias=False),
            "frozen": nn.Linear(128, 8, bias=False).requires_grad_(False),
            "fp16": nn.Linear(128, 8, bias=False, dtype=torch.float16),
            "meta": nn.Linear(128, 8, bias=False, device="meta"),
        }
    )
    assert set(reasons(model).values()) == {""}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", range(1, 70, 4))
def test_a_short_row_is_compressed_where_it_shrinks(columns: int, dtype: torch.dtype) -> None:
    model = nn.Linear(columns, 8, bias=False, dtype=dtype)
    stored = -(-columns // 64) * (64 * 8 // 8 + 2)  # padded groups and their scale words
    shrinks = stored < columns * dtype.itemsize
    assert (reasons(model)["weight"] == "") == shrinks


def test_sizes_are_those_of_the_planes() -> None:
    for shape in ((8, 128), (3, 200), (2, 5, 65)):
        for config in (PhiConfig(), PhiConfig(3, 8, 32), PhiConfig(6, 0, 128), PhiConfig(2, 2)):
            groups = -(-shape[-1] // config.group_size)
            rows = torch.Size(shape[:-1]).numel()
            codes = config.group_size * (config.index_bits + config.deviation_bits) // 8
            slot = Slot(None, shape, torch.float32, config=config)
            assert slot.stored_bytes == rows * groups * (codes + 2)
            assert slot.bytes == torch.Size(shape).numel() * 4


@pytest.mark.parametrize(
    ("config", "dtype", "bits"),
    [
        (PhiConfig(exact=True), torch.bfloat16, 11.3),
        (PhiConfig(deviation_bits=2, exact=True), torch.bfloat16, 11.3),
        (PhiConfig(5, 8, exact=True), torch.bfloat16, 13.25),
        (PhiConfig(5, 8, exact=True), torch.float16, 14.3),
        (PhiConfig(exact=True), torch.float32, 27.3),
    ],
    ids=str,
)
def test_sizes_of_exact_forms_are_estimated(
    config: PhiConfig, dtype: torch.dtype, bits: float
) -> None:
    slot = Slot(None, (64, 512), dtype, config=config)
    assert slot.stored_bytes * 8 / (64 * 512) == pytest.approx(bits, abs=1e-3)
    assert slot.lossy_bytes * 8 / (64 * 512) == config.bits_per_weight


def test_an_exact_form_that_grows_is_told_with_its_size() -> None:
    tensor = PhiTensor.from_hp(noise(8, 512), PhiConfig(exact=True))
    size = f"{tensor.bits_per_weight:.2f}"
    reason = why_it_grew(tensor, torch.bfloat16)
    assert reason == f"its exact form would grow to {size} bits a weight from 16"
    assert why_it_grew(tensor, torch.float32) == ""
    assert why_it_grew(tensor.at(4), torch.bfloat16) == ""


class TestShared:
    def test_a_tie_is_one_slot(self) -> None:
        slots = plan(TiedModel(), PhiConfig(deviation_bits=0), None)
        (tie,) = (slot for slot in slots if len(slot.names) > 1)
        assert tie.names == ["embed.weight", "head.weight"]
        assert [leaf for _, leaf in tie.owners] == ["weight", "weight"]
        assert tie.config == PhiConfig(deviation_bits=4)

    def test_with_an_unsupported_module_it_is_left_alone(self) -> None:
        model = nn.Sequential(nn.Linear(64, 100, bias=False), nn.EmbeddingBag(100, 64))
        model[1].weight = model[0].weight
        expected = "1.weight: EmbeddingBag runs in a fused kernel that takes plain weights only"
        assert reasons(model) == {"0.weight": expected, "1.weight": expected}

    def test_places_must_store_it_alike(self) -> None:
        model = nn.Sequential(nn.Conv1d(64, 64, 64), nn.ConvTranspose2d(64, 64, 8))
        model[1].weight = nn.Parameter(model[0].weight.data)
        model[0].weight = model[1].weight
        expected = "1.weight: ConvTranspose2d would store it another way than 0.weight"
        assert reasons(model)["0.weight"] == expected

    def test_a_filter_must_want_every_place(self) -> None:
        slots = plan(TiedModel(), PhiConfig(), lambda module, name: name != "head")
        assert slots[0].reason == "head.weight: left out by filter_fn"

    def test_a_module_that_is_used_twice_is_one(self) -> None:
        shared = nn.Linear(64, 64, bias=False)
        (slot,) = plan(nn.Sequential(shared, nn.ReLU(), shared), PhiConfig(), None)
        assert slot.config is not None


class TestHeads:
    class Model(nn.Module):
        def __init__(self, head: object) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(64, 64), nn.Linear(64, 64)
            self._head = head

        def get_output_embeddings(self) -> object:
            return self.head if self._head == "head" else self._head

    def test_a_model_may_not_know_its_head(self) -> None:
        class Unsure(nn.Linear):
            def get_output_embeddings(self) -> nn.Module:
                raise NotImplementedError

        assert reasons(Unsure(64, 64))["weight"] == ""

    @pytest.mark.parametrize("wrap", [lambda model: model, lambda model: nn.Sequential(model)])
    @pytest.mark.parametrize(("head", "bits"), [("head", 4), (None, 0), (torch.ones(1), 0)])
    def test_a_transformers_head_keeps_four_deviation_bits(
        self, head: object, bits: int, wrap: Callable[[nn.Module], nn.Module]
    ) -> None:
        slots = plan(wrap(self.Model(head)), PhiConfig(deviation_bits=0), None)
        chosen = {
            s.names[0].removeprefix("0."): s.config.deviation_bits
            for s in slots
            if s.config is not None
        }
        assert chosen == {"body.weight": 0, "head.weight": bits}


class TestFilter:
    def test_it_is_asked_for_modules_that_could_be_compressed(self) -> None:
        asked = []
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.GRUCell(4, 4), nn.Embedding(9, 64))
        plan(model, PhiConfig(), lambda module, name: asked.append((module, name)) or True)
        assert asked == [(model[0], "0"), (model[3], "3")]

    @pytest.mark.parametrize(
        ("answer", "taken"),
        [(True, True), (1, True), ("yes", True), (torch.tensor(True), True)]
        + [(False, False), (0, False), (None, False), ("", False), (torch.tensor(False), False)],
    )
    def test_its_answer_is_taken_as_python_does(self, answer: object, taken: bool) -> None:
        (slot, _) = plan(nn.Linear(64, 64), PhiConfig(), lambda *_: answer)
        assert (slot.config is not None) == taken
        assert taken or slot.reason == "left out by filter_fn"

    def test_its_errors_come_through(self) -> None:
        with pytest.raises(ZeroDivisionError):
            plan(nn.Linear(64, 64), PhiConfig(), lambda *_: 1 / 0)

    def test_it_must_be_callable(self) -> None:
        with pytest.raises(TypeError, match=r"filter_fn: expected \(module, name\) -> bool, got"):
            plan(nn.Linear(64, 64), PhiConfig(), "0")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model", [torch.ones(2, 64), {"weight": torch.ones(2, 64)}, nn.Linear, None]
)
def test_what_is_no_module_is_refused(model: object) -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got"):
        plan(model, PhiConfig(), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [nn.Module(), nn.Sequential(), nn.ReLU()])
def test_models_without_parameters(model: nn.Module) -> None:
    assert plan(model, PhiConfig(), None) == []
