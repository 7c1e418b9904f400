"""Real models, compressed in place: as near to the original as each tier promises, and no nearer.

The bars have two sides. Random errors of a tier's size give the numbers in the middle; a broken
codec is above them, and a model that was not compressed at all is below.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import phiquant
from benchmarks import zoo
from benchmarks.zoo import metrics
from benchmarks.zoo.packages import MissingPackage
from phiquant import PhiConfig, PhiTensor, Report
from tests.support import relative, same_bits

pytestmark = pytest.mark.slow

# (index bits, deviation bits): relative error of natural weights, from below and above
TIERS = {(4, 0): (0.06, 0.12), (4, 4): (4e-3, 1e-2), (5, 8): (1e-4, 4e-4)}


def loaded(name: str) -> tuple[ModuleType, nn.Module]:
    module = zoo.model(name)
    try:
        return module, module.load().eval()
    except MissingPackage as missing:
        pytest.skip(str(missing))


def compressed(model: nn.Module, bits: tuple[int, int]) -> tuple[nn.Module, Report]:
    """A compressed copy and its report, whose errors were held against the tier's bars."""
    copied = copy.deepcopy(model)
    report = phiquant.quantize_(copied, PhiConfig(*bits))
    low, high = TIERS[bits]
    for entry in report.compressed:
        tensor, original = copied.get_parameter(entry.names[0]), model.get_parameter(entry.names[0])
        assert isinstance(tensor, PhiTensor)
        if tensor.deviation_bits == bits[1]:  # embeddings keep more
            assert low < entry.relative_error < high, entry
    # one weight is measured here, independently of what the report says
    assert entry.relative_error == pytest.approx(relative(tensor.dequantize(), original), rel=1e-3)
    return copied, report


@pytest.fixture(scope="module")
def minilm() -> tuple[ModuleType, nn.Module]:
    return loaded("minilm")


@pytest.mark.parametrize(
    ("bits", "distance"), [((4, 0), (1e-3, 3e-2)), ((4, 4), (1e-5, 5e-4)), ((5, 8), (1e-9, 2e-6))]
)
def test_minilm_embeds_sentences_alike(
    minilm: tuple[ModuleType, nn.Module], bits: tuple[int, int], distance: tuple[float, float]
) -> None:
    """1 - cosine to the original's embedding, on average over sentences."""
    module, model = minilm
    sentences = [
        "A group of atoms that share electrons.",
        "The train to the coast leaves at seven in the morning.",
        "She had never seen the city from above.",
        "Golden ratio",
        "How do I compress the weights of a neural network without losing quality?",
        "Prices fell again in the third quarter, to the surprise of most analysts.",
    ]
    copied, report = compressed(model, bits)
    assert len(report.compressed) == 40
    assert {len(s.shape) for s in report.skipped} == {1}
    ours, theirs = (module.embed(m, sentences).double() for m in (copied, model))
    away = 1 - (ours * theirs).sum(-1).mean().item()
    assert distance[0] < away < distance[1]


@pytest.fixture(scope="module")
def smollm2() -> tuple[ModuleType, nn.Module]:
    return loaded("smollm2")


@pytest.fixture(scope="module")
def prompt(smollm2: tuple[ModuleType, nn.Module]) -> Tensor:
    text = (
        "The golden ratio appears in the growth of some plants. A sunflower's seeds are arranged "
        "in spirals, and the numbers of spirals are neighbours in the Fibonacci sequence. "
    )
    return smollm2[0].encode(text * 3, 96)


@pytest.mark.parametrize(("bits", "distance"), [((4, 4), (1e-5, 5e-3)), ((5, 8), (1e-10, 2e-5))])
def test_smollm2_predicts_alike(
    smollm2: tuple[ModuleType, nn.Module],
    prompt: Tensor,
    bits: tuple[int, int],
    distance: tuple[float, float],
) -> None:
    """KL to the original's predictions. The weights lie on a lattice of their own: see the zoo."""
    module, model = smollm2
    copied = copy.deepcopy(model)
    report = phiquant.quantize_(copied, PhiConfig(*bits))
    assert len(report.compressed) == 211
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    assert report.bits_per_weight == pytest.approx(PhiConfig(*bits).bits_per_weight)
    away = metrics.kl_divergence(module.logits(model, prompt), module.logits(copied, prompt))
    assert distance[0] < away < distance[1]


def test_smollm2_generates_the_same_text(
    smollm2: tuple[ModuleType, nn.Module], prompt: Tensor
) -> None:
    """At 13.25 bits, greedily."""
    _, model = smollm2
    copied = copy.deepcopy(model)
    phiquant.quantize_(copied, PhiConfig(5, 8))
    continued = [
        m.generate(prompt[None, :32], max_new_tokens=12, do_sample=False) for m in (model, copied)
    ]
    assert torch.equal(*continued)


def broken_codes(tensor: PhiTensor) -> None:
    """Every fourth deviation code one off, as a slip of a decoder would make it."""
    tensor.deviation_plane[..., ::2] ^= 0x01


def broken_scales(tensor: PhiTensor) -> None:
    """Bends taken for another."""
    tensor.scale_plane ^= 0x1


@pytest.mark.parametrize("slip", [broken_codes, broken_scales])
def test_the_bars_notice_a_broken_codec(
    minilm: tuple[ModuleType, nn.Module], slip: Callable[[PhiTensor], None]
) -> None:
    _, model = minilm
    weight = model.get_parameter("encoder.layer.0.attention.self.query.weight")
    tensor = PhiTensor.from_hp(weight)
    low, high = TIERS[4, 4]
    assert low < relative(tensor.dequantize(), weight) < high
    slip(tensor)
    assert relative(tensor.dequantize(), weight) > high


@pytest.mark.parametrize("bits", TIERS)
def test_whisper_layers_stay_near(bits: tuple[int, int]) -> None:
    """Outputs of real layers on inputs like theirs; errors add up as independent ones do."""
    _, model = loaded("whisper")
    low, high = TIERS[bits]
    layer = model.model.encoder.layers[1]
    copied = copy.deepcopy(layer)
    report = phiquant.quantize_(copied, PhiConfig(*bits))
    assert len(report.compressed) == 6
    hidden = layer.self_attn_layer_norm(torch.randn(1, 50, 384))
    with torch.inference_mode():
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                x = torch.randn(50, 1536)[:, : module.in_features] if name == "fc2" else hidden
                error = relative(copied.get_submodule(name)(x), module(x))
                assert low / 4 < error < 1.5 * high, name


def test_efficientnet_classifies_alike() -> None:
    """A network of convolutions; the depthwise ones that would not shrink are reported."""
    module, model = loaded("efficientnet")
    original = module.logits(model)
    copied, report = compressed(model, (4, 4))
    assert len(report.compressed) == 42
    kept = [s.reason for s in report.skipped if len(s.shape) > 1]
    assert len(kept) == 8
    assert all(reason.startswith("would not shrink (rows of ") for reason in kept)
    assert report.stored_bytes < 0.3 * report.original_bytes
    away = metrics.kl_divergence(original, module.logits(copied))
    assert 1e-5 < away < 2e-2
    assert metrics.agreement(original, module.logits(copied)) > 0.85


def test_efficientnet_exactly() -> None:
    module, model = loaded("efficientnet")
    original = module.logits(model)
    copied = copy.deepcopy(model)
    report = phiquant.quantize_(copied, PhiConfig(exact=True))
    grown = [s for s in report.skipped if "its exact form would grow" in s.reason]
    assert (len(report.compressed), len(grown)) == (24, 18)  # of fp32, with rows of 24 to 144
    assert torch.equal(module.logits(copied), original)


@pytest.mark.parametrize(
    ("bits", "cents"), [((4, 0), (0.05, 2)), ((4, 4), (1e-3, 0.2)), ((5, 8), (1e-5, 0.01))]
)
def test_crepe_hears_the_same_pitch(bits: tuple[int, int], cents: tuple[float, float]) -> None:
    """Six convolutions with heavy tails and a classifier: how far the pitch moves."""
    module, model = loaded("crepe")
    copied = copy.deepcopy(model)
    report = phiquant.quantize_(copied, PhiConfig(*bits))
    assert len(report.compressed) == 7
    assert not [s for s in report.skipped if len(s.shape) > 1]
    assert report.bits_per_weight == pytest.approx(PhiConfig(*bits).bits_per_weight)
    assert cents[0] < module.evaluate(copied)["cents_from_original"] < cents[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "bits"), [("minilm", 11.4), ("smollm2", 11.6), ("whisper", 11.9)])
def test_whole_models_come_back_bit_for_bit(name: str, bits: float, dtype: torch.dtype) -> None:
    """As bf16, and as the same numbers in fp32, which take no more."""
    _, model = loaded(name)
    model = copy.deepcopy(model).bfloat16().to(dtype)
    original = {key: p.detach().clone() for key, p in model.named_parameters()}
    report = phiquant.quantize_(model, PhiConfig(exact=True))
    assert report.bits_per_weight < bits
    assert not [s for s in report.skipped if "would grow" in s.reason]
    verified = phiquant.verify(model)
    assert verified.complete
    assert len(verified.verified) == len(report.compressed) > 30
    for key, parameter in model.named_parameters():
        value = parameter.dequantize() if isinstance(parameter, PhiTensor) else parameter.data
        assert same_bits(value, original[key]), key
