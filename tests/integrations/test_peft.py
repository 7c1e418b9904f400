"""LoRA adapters of PEFT on compressed models: train, save, load, merge, and what is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import phiquant
from phiquant import PhiConfig, PhiQuantConfig, PhiTensor
from tests.conftest import THREADS
from tests.integrations import support
from tests.support import TiedModel, relative, same_bits

peft = pytest.importorskip("peft")

from phiquant.integrations import peft_merging  # noqa: E402

PROJECTIONS = ("q_proj", "v_proj", "down_proj")
BASES = {
    "index": PhiConfig(deviation_bits=0),
    "deviation": PhiConfig(),
    "13 bits": PhiConfig(index_bits=5, deviation_bits=8, group_size=32),
    "golden": PhiConfig(grid="golden"),
    "exact": PhiConfig(exact=True),
}
each_base = pytest.mark.parametrize("base", BASES)
IDS = support.prompt()["input_ids"]


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_merging, "_told", set())


@pytest.fixture
def quiet() -> Iterator[None]:
    """Merging into a lossy base says so; here that is not what is looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lora(model: nn.Module, targets: Any = PROJECTIONS, **settings: Any) -> Any:
    """An adapter of small random weights, so that it changes what the model says."""
    settings = {"r": 4, "init_lora_weights": False, "target_modules": targets} | settings
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    shrink(wrapped)
    return wrapped


def shrink(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            parameter.data.mul_(0.3)


def compressed(config: PhiConfig | None = None, dtype: torch.dtype = torch.float32) -> Any:
    model = support.llama().to(dtype)
    phiquant.quantize_(model, config, progress=False)
    return model


def loaded(tmp_path: Path, **settings: Any) -> Any:
    folder = support.saved(support.llama(), tmp_path / "base")
    return support.load(folder, quantization_config=PhiQuantConfig(**settings))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(IDS).logits


def weights(model: nn.Module) -> dict[str, PhiTensor]:
    """The compressed weights below the adapters."""
    found = model.named_parameters(remove_duplicate=False)
    return {name: weight for name, weight in found if isinstance(weight, PhiTensor)}


def steps(model: nn.Module, count: int = 8) -> list[float]:
    """Losses of learning one batch by heart."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(count):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@each_base
def test_an_adapter_trains_and_the_base_stays(base: str) -> None:
    model = compressed(BASES[base])
    before = {name: weight.dequantize() for name, weight in weights(model).items()}
    wrapped = lora(model, init_lora_weights=True)
    losses = steps(wrapped)
    assert losses[-1] < losses[0] - 0.1
    after = list(weights(model).values())
    assert all(torch.equal(a.dequantize(), b) for a, b in zip(after, before.values(), strict=True))


def test_gradients_are_those_on_the_decoded_base() -> None:
    model = lora(compressed())
    plain = copy.deepcopy(model)
    for module in plain.modules():
        for leaf, weight in list(module.named_parameters(recurse=False)):
            if isinstance(weight, PhiTensor):
                setattr(module, leaf, nn.Parameter(weight.dequantize(), requires_grad=False))
    for one in (model, plain):
        one(IDS, labels=IDS).loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert len(grads) == 12
    for name, grad in grads.items():
        assert relative(grad, plain.get_parameter(name).grad) < 1e-4, name


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    model = lora(compressed()).train()
    model(IDS, labels=IDS).loss.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(IDS, labels=IDS).loss.backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(expected) == 12
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prepare_for_training_freezes_and_checkpoints(dtype: torch.dtype) -> None:
    model = compressed(dtype=dtype)
    method = getattr(model, "quantization_method", None)
    prepared = peft.prepare_model_for_kbit_training(model)
    assert prepared.is_gradient_checkpointing
    assert not any(p.requires_grad for p in prepared.parameters())
    assert {p.dtype for p in prepared.parameters()} == {dtype}
    assert getattr(prepared, "quantization_method", None) == method
    losses = steps(lora(prepared, init_lora_weights=True).train())
    assert losses[-1] < losses[0]


def test_a_plain_model_is_prepared_as_ever() -> None:
    model = peft.prepare_model_for_kbit_training(support.llama().bfloat16())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.is_gradient_checkpointing


def test_a_method_of_quantization_is_put_back(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    assert model.quantization_method == "phiquant"
    assert peft.prepare_model_for_kbit_training(model).quantization_method == "phiquant"


@each_base
def test_saved_and_loaded_onto_a_fresh_base(base: str, tmp_path: Path) -> None:
    model = compressed(BASES[base])
    fresh = copy.deepcopy(model)
    trained = lora(model, init_lora_weights=True)
    steps(trained, 2)
    trained.eval().save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path)
    assert torch.equal(logits(again), logits(trained))


@pytest.mark.filterwarnings("ignore:Model has `tie_word", "ignore:Setting `save_embedding")
def test_a_file_holds_the_adapter_and_nothing_else(tmp_path: Path) -> None:
    from safetensors import safe_open

    lora(compressed(), ("embed_tokens", "q_proj")).save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert all("lora_" in name for name in file.keys())  # noqa: SIM118 - not a mapping
        assert len(list(file.keys())) == 6


def test_several_adapters_and_none() -> None:
    model = compressed()
    base = logits(model)
    wrapped = lora(model)
    first = logits(wrapped)
    wrapped.add_adapter("other", peft.LoraConfig(r=2, target_modules=["k_proj", "q_proj"]))
    wrapped.set_adapter("other")
    assert torch.equal(logits(wrapped), base)  # a new adapter starts with no change
    wrapped.set_adapter("default")
    assert torch.equal(logits(wrapped), first)
    with wrapped.disable_adapter():
        assert torch.equal(logits(wrapped), base)
    assert not torch.equal(first, base)
    assert torch.equal(logits(wrapped.unload()), base)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("made", ["in place", "from_pretrained"])
@each_base
def test_merged_weights_are_the_sum_compressed_in_the_same_way(
    base: str, made: str, tmp_path: Path
) -> None:
    config = BASES[base]
    model = compressed(config) if made == "in place" else loaded(tmp_path, **vars(config))
    names, before = list(weights(model)), logits(model)
    wrapped = lora(model)
    adapted = logits(wrapped)
    layer = wrapped.base_model.model.model.layers[1].mlp.down_proj
    wanted = layer.base_layer.weight.dequantize() + layer.get_delta_weight("default")
    merged = wrapped.merge_and_unload()
    assert list(weights(merged)) == names
    weight = merged.get_parameter("model.layers.1.mlp.down_proj.weight")
    assert weight.config == config
    assert weight.describe() == "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(weight, PhiTensor.from_hp(wanted.detach(), config))
    rounding = {"index": 0.2, "exact": 1e-5}.get(base, 0.02)
    assert relative(logits(merged), adapted) < rounding
    assert relative(before, adapted) > 0.2


@pytest.mark.usefixtures("quiet")
def test_exact_bf16_merges_as_a_plain_model_does() -> None:
    plain = lora(support.llama().bfloat16())
    exact = copy.deepcopy(plain).unload()
    phiquant.quantize_(exact, PhiConfig(exact=True), progress=False)
    exact = lora(exact)
    exact.load_state_dict(
        {name: value for name, value in plain.state_dict().items() if "lora_" in name},
        strict=False,
    )
    plain, exact = plain.merge_and_unload(), exact.merge_and_unload()
    for name, weight in weights(exact).items():
        assert weight.is_exact
        assert same_bits(weight.dequantize(), plain.get_parameter(name).data)
        assert weight.verify()


@pytest.mark.usefixtures("quiet")
@each_base
def test_unmerging_gives_the_planes_back_and_the_ties(base: str) -> None:
    model = compressed(BASES[base])
    planes = weights(model)
    wrapped = lora(model, (*PROJECTIONS, "lm_head"))
    before = logits(wrapped)
    wrapped.merge_adapter()
    assert not torch.equal(logits(wrapped), before)
    wrapped.unmerge_adapter()
    assert torch.equal(logits(wrapped), before)
    after = weights(wrapped.unload())
    assert all(after[name] is planes[name] for name in planes)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_merging_in_steps_rounds_once(dora: bool) -> None:
    def build() -> Any:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(128, 96))
        phiquant.quantize_(model, PhiConfig(deviation_bits=0), progress=False)
        model = lora(model, ["0"], use_dora=dora)
        config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False, use_dora=dora)
        model.add_adapter("other", config)
        return model

    at_once, in_steps = build(), build()
    at_once.merge_adapter(["default", "other"])
    in_steps.merge_adapter(["default"])
    in_steps.merge_adapter(["other"])
    layer, its = at_once.base_model.model[0], in_steps.base_model.model[0]
    assert layer.merged_adapters == its.merged_adapters == ["default", "other"]
    assert torch.equal(layer.base_layer.weight, its.base_layer.weight)
    in_steps.unmerge_adapter()
    assert torch.equal(its.base_layer.weight, build().base_model.model[0].base_layer.weight)


@pytest.mark.usefixtures("quiet")
def test_a_bias_is_merged_and_given_back() -> None:
    model = nn.Sequential(nn.Linear(128, 96))
    phiquant.quantize_(model, progress=False)
    bias, x = model[0].bias.detach().clone(), torch.randn(3, 128)
    wrapped = lora(model, ["0"], lora_bias=True)
    adapted = wrapped(x)
    wrapped.merge_adapter()
    assert relative(wrapped(x), adapted) < 0.02
    assert not torch.equal(model[0].base_layer.bias, bias)
    wrapped.unmerge_adapter()
    assert torch.equal(model[0].base_layer.bias, bias)


def test_an_adapter_with_nan_leaves_the_base_as_it_was() -> None:
    wrapped = lora(compressed())
    layer = wrapped.base_model.model.model.layers[0].self_attn.q_proj
    weight = layer.base_layer.weight
    layer.lora_B["default"].weight.data[0, 0] = float("nan")
    for safe in (False, True):
        with pytest.raises(ValueError, match=r"q_proj\.weight.*NaN|NaNs detected"):
            wrapped.merge_adapter(safe_merge=safe)
        assert layer.base_layer.weight is weight
        assert not layer.merged


@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore:Model with `tie_word")
def test_a_merged_head_is_no_longer_tied() -> None:
    wrapped = lora(compressed(), ["lm_head"], ensure_weight_tying=False)
    adapted = logits(wrapped)
    merged = wrapped.merge_and_unload()
    assert relative(logits(merged), adapted) < 0.02
    assert merged.lm_head.weight is not merged.model.embed_tokens.weight
    assert not merged.config.tie_word_embeddings


def test_decoded_first_nothing_is_lost_in_merging() -> None:
    wrapped = lora(compressed(PhiConfig(deviation_bits=0)))
    adapted = logits(wrapped)
    merged = phiquant.dequantize_(wrapped).merge_and_unload()
    assert not weights(merged)
    assert relative(logits(merged), adapted) < 1e-5


# --- kinds of layers ------------------------------------------------------------------------


def conv(kind: type[nn.Module], dims: int) -> tuple[nn.Module, list[str], Tensor]:
    model = nn.Sequential(kind(16, 32, 3, padding=1), nn.ReLU(), kind(32, 16, 1))
    return model, ["0"], torch.randn(2, 16, *[6] * dims)


KINDS: dict[str, Callable[[], tuple[nn.Module, list[str], Tensor]]] = {
    "Linear": lambda: (nn.Sequential(nn.Linear(128, 64)), ["0"], torch.randn(5, 128)),
    "Embedding": lambda: (TiedModel(), ["embed"], torch.randint(0, 100, (2, 5))),
    "tied head": lambda: (TiedModel(), ["head"], torch.randint(0, 100, (2, 5))),
    "Conv1D of GPT-2": lambda: (support.gpt2(), ["c_attn", "c_fc"], IDS),
    "Conv1d": lambda: conv(nn.Conv1d, 1),
    "Conv2d": lambda: conv(nn.Conv2d, 2),
    "Conv3d": lambda: conv(nn.Conv3d, 3),
}


def output(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_trains_merges_and_unmerges(kind: str) -> None:
    model, targets, x = KINDS[kind]()
    report = phiquant.quantize_(model.eval(), progress=False)
    assert report.compressed
    wrapped = lora(model, targets)
    adapted = output(wrapped, x)
    functional.mse_loss(adapted, torch.zeros_like(adapted)).backward()
    adapters = [p for name, p in wrapped.named_parameters() if "lora_" in name]
    assert all(p.grad is not None and p.grad.any() for p in adapters)
    layers = [m for m in wrapped.modules() if type(m).__module__.endswith(".peft_layers")]
    assert layers
    wrapped.merge_adapter()
    assert all(isinstance(layer.get_base_layer().weight, PhiTensor) for layer in layers)
    assert relative(output(wrapped, x), adapted) < 0.02
    wrapped.unmerge_adapter()
    assert torch.equal(output(wrapped, x), adapted)


class Experts(nn.Module):
    """Three expert matrices in one parameter, all of which read the input."""

    def __init__(self) -> None:
        super().__init__()
        weight = PhiTensor.from_hp(torch.randn(3, 64, 128) * 0.1, name="experts.weight")
        self.matrices = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([functional.linear(x, matrix) for matrix in self.matrices])


@pytest.mark.usefixtures("quiet")
def test_a_parameter_of_experts_by_its_name() -> None:
    model, x = nn.Sequential(Experts()), torch.randn(2, 128)
    before = model(x)
    wrapped = lora(model, [], target_parameters=["0.matrices"])
    adapted = wrapped(x)
    adapted.sum().backward()
    assert all(p.grad is not None for name, p in wrapped.named_parameters() if "lora_" in name)
    assert relative(adapted, before) > 0.03
    merged = wrapped.merge_and_unload()
    assert isinstance(merged[0].matrices, PhiTensor)
    assert relative(merged(x), adapted) < 0.01


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"use_rslora": True}], ids=str)
@pytest.mark.usefixtures("quiet")
def test_variants(settings: dict[str, bool]) -> None:
    wrapped = lora(compressed(), **settings)
    adapted = logits(wrapped)
    losses = steps(copy.deepcopy(wrapped))
    assert losses[-1] < losses[0]
    assert relative(logits(wrapped.merge_and_unload()), adapted) < 0.02


# --- what the user is told ------------------------------------------------------------------


def test_what_merging_into_a_lossy_base_loses_is_said_once() -> None:
    wrapped = lora(compressed(PhiConfig(deviation_bits=0)))
    with pytest.warns(UserWarning, match=r"q_proj\.weight.*4\.25 bits again.*times as") as told:
        wrapped.merge_and_unload()
    assert len([w for w in told if "phiquant" in str(w.message)]) == 1


def test_exact_bf16_says_nothing_and_wider_numbers_that_they_take_more() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        lora(compressed(PhiConfig(exact=True), torch.bfloat16)).merge_and_unload()
    of_bf16 = support.llama().bfloat16().float()
    phiquant.quantize_(of_bf16, PhiConfig(exact=True), progress=False)
    with pytest.warns(UserWarning, match=r"held torch\.bfloat16.*merging made torch\.float32"):
        lora(of_bf16).merge_and_unload()


def test_a_merged_weight_that_would_grow_stays_plain_and_unmerges() -> None:
    model = nn.Sequential(nn.Linear(128, 96, bias=False)).bfloat16()
    phiquant.quantize_(model, PhiConfig(exact=True), progress=False)
    before, wrapped = model[0].weight, lora(model, ["0"])
    layer = wrapped.base_model.model[0]
    # an outlier in every group leaves the others denormal, at widths that do not pay
    layer.lora_A["default"].weight.data[:, ::16] = 1e18
    layer.lora_A["default"].weight.data[:, 1::2] *= 1e-12
    with pytest.warns(UserWarning, match="stays uncompressed: its exact form would grow"):
        wrapped.merge_adapter()
    assert not isinstance(layer.base_layer.weight, PhiTensor)
    wrapped.unmerge_adapter()
    assert layer.base_layer.weight is before


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_start_values_that_rewrite_the_base_are_refused(start: str) -> None:
    with pytest.raises(ValueError, match=rf"q_proj\.weight: init_lora_weights='{start}' rewrites"):
        lora(compressed(), ["q_proj"], init_lora_weights=start)


def test_dora_on_an_embedding_is_refused() -> None:
    model = support.llama(tie_word_embeddings=False)
    phiquant.quantize_(model, progress=False)
    with pytest.raises(ValueError, match=r"embed_tokens\.weight: use_dora=True works on a plain"):
        lora(model, ["embed_tokens"], use_dora=True)


def test_a_module_that_lora_does_not_know_is_refused() -> None:
    model = nn.TransformerEncoderLayer(64, 4, batch_first=True)
    phiquant.quantize_(model, progress=False)
    with pytest.raises(ValueError, match=r"compressed MultiheadAttention.*take it out of target_m"):
        lora(model, ["self_attn"])


@pytest.mark.filterwarnings("error:TorchaoLoraLinear")
def test_plain_layers_next_to_compressed_ones_are_pefts_own() -> None:
    model = support.llama()
    phiquant.quantize_(model, filter_fn=lambda _, name: "mlp" not in name, progress=False)
    layer = lora(model).base_model.model.model.layers[0]
    assert type(layer.self_attn.q_proj).__name__ == "PhiLinear"
    assert type(layer.mlp.down_proj) is peft.tuners.lora.layer.Linear


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_a_compressed_base_learns_a_real_task_as_the_original_does() -> None:
    """MiniLM finds headwords by their definitions: held-out loss, same seed, same batches."""
    from benchmarks import lora as task
    from benchmarks.zoo.packages import MissingPackage
    from benchmarks.zoo.texts import MissingText

    torch.set_num_threads(1)  # sums in the same order, whatever else the machine does
    try:
        plain, index = (task.run(config, steps=20, judged=64) for config in (None, BASES["index"]))
    except (MissingPackage, MissingText) as error:
        pytest.skip(str(error))
    finally:
        torch.set_num_threads(THREADS)
    learned = plain.before - plain.after
    assert learned > 0.25
    assert index.before - index.after > 0.8 * learned
    assert index.after < index.merged < index.before  # 4.25 bits are too few to merge into


def test_a_model_that_has_an_adapter_is_compressed_without_it() -> None:
    model = peft.get_peft_model(
        support.llama(), peft.LoraConfig(r=64, target_modules=["q_proj", "v_proj"])
    )
    report = phiquant.quantize_(model)
    adapters = [name for name, _ in model.named_parameters() if ".lora_" in name]
    reasons = {s.names[0]: s.reason for s in report.skipped}
    assert adapters
    assert {reasons[name] for name in adapters} == {"of an adapter, which is there to be trained"}
    compressed = {name for entry in report.compressed for name in entry.names}
    assert any(name.endswith("q_proj.base_layer.weight") for name in compressed)
