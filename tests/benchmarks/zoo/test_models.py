"""The models are themselves: their known scores, and worse ones when they are damaged."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import zoo
from benchmarks.matrices import matrices
from benchmarks.zoo import packages, speech, texts

pytestmark = pytest.mark.slow

SCALE = 0.05  # relative noise of the damaged weights


@pytest.fixture(autouse=True)
def forget_references() -> Iterator[None]:
    """Outputs of the originals on the few inputs of a test are not those of other tests."""
    yield
    for name in zoo.MODELS:
        for value in vars(zoo.model(name)).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def load(name: str) -> nn.Module:
    try:
        return zoo.model(name).load()
    except packages.MissingPackage as error:
        pytest.skip(str(error))


def damage(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for matrix in matrices(model, convolutions=True):
            weight = matrix.parameter
            weight.add_(torch.randn_like(weight) * weight.std() * SCALE)
    return model


def test_minilm() -> None:
    minilm, model = zoo.model("minilm"), load("minilm")
    intact = minilm.evaluate(model, count=40)
    assert intact["cosine_distance"] < 1e-12
    damaged = minilm.evaluate(damage(model), count=40)
    assert 1e-4 < damaged["cosine_distance"] < 0.1
    assert damaged["cosine"] == 1 - damaged["cosine_distance"]


def test_minilm_finds_headwords() -> None:
    minilm, model = zoo.model("minilm"), load("minilm")
    try:
        texts.jargon()
    except texts.MissingText as error:
        pytest.skip(str(error))
    scores = minilm.evaluate(model, count=100)
    assert 0.25 < scores["top1"] < scores["mrr"] < 0.6  # chance is 0.005


def test_antiberty(monkeypatch: pytest.MonkeyPatch) -> None:
    antiberty, model = zoo.model("antiberty"), load("antiberty")
    sequence = antiberty.SEQUENCES["trastuzumab heavy"]
    monkeypatch.setattr(antiberty, "SEQUENCES", {"trastuzumab heavy": sequence})
    # 1.905 with one residue masked at a time, and 24 if the sequence is shuffled.
    assert antiberty.evaluate(model) == {
        "pseudo_perplexity": pytest.approx(1.889, abs=2e-3),
        "kl": 0,
    }
    assert antiberty.evaluate(damage(model))["kl"] > 1e-5


def test_whisper(monkeypatch: pytest.MonkeyPatch) -> None:
    whisper, model = zoo.model("whisper"), load("whisper")
    try:
        clips = speech.clips()[:2]
    except speech.MissingSpeech as error:
        pytest.skip(str(error))
    monkeypatch.setattr(speech, "clips", lambda: clips)
    intact = whisper.evaluate(model)
    assert intact["kl"] == 0
    assert intact["nll"] < 1
    assert whisper.evaluate(damage(model))["kl"] > 1e-3


def test_efficientnet(monkeypatch: pytest.MonkeyPatch) -> None:
    efficientnet, model = zoo.model("efficientnet"), load("efficientnet")
    images = efficientnet.images()
    assert images.shape[1:] == (3, 224, 224)
    # The whole squares of the photos: a cat and a cup of coffee are the second and the third.
    monkeypatch.setattr(efficientnet, "images", lambda: images[5::6])
    classes = efficientnet.logits(model).argmax(-1)
    assert classes[1] in (281, 282, 285)  # tabby, tiger or Egyptian cat
    assert classes[2] in (504, 967)  # coffee mug or espresso
    assert efficientnet.evaluate(model) == {"top1_agreement": 1, "kl": 0}
    assert efficientnet.evaluate(damage(model))["kl"] > 1e-4


def test_crepe(monkeypatch: pytest.MonkeyPatch) -> None:
    crepe, model = zoo.model("crepe"), load("crepe")
    frames, cents = crepe.tones()
    monkeypatch.setattr(crepe, "tones", lambda: (frames[::8], cents[::8]))
    intact = crepe.evaluate(model)
    assert intact["cents_error"] < 5
    assert intact["cents_from_original"] == 0
    assert crepe.evaluate(damage(model))["cents_from_original"] > 0.01


def test_smollm2_perplexity_and_tokenizer() -> None:
    smollm2, model = zoo.model("smollm2"), load("smollm2")
    tokenizer = smollm2.tokenizer()
    text = "Héllo 12345 world\n\n  def f(x): <|im_start|> 日本"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") == 1
    assert 1 in ids
    try:
        persuasion = texts.austen()["Persuasion"][20_000:]
    except texts.MissingText as error:
        pytest.skip(str(error))
    ids = smollm2.encode(persuasion, 2048)
    # 42.31 over 8,191 tokens; the first 2,047 are easier.
    assert smollm2.text_perplexity(model, ids) == pytest.approx(38.42, abs=0.05)


def test_smollm2_saves_for_from_pretrained(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    smollm2, model = zoo.model("smollm2"), load("smollm2")
    folder = smollm2.save(tmp_path / "smollm2")
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], tensor), name
    assert reloaded.lm_head.weight is reloaded.model.embed_tokens.weight
    chat = [{"role": "user", "content": "Hi"}]
    assert AutoTokenizer.from_pretrained(folder).apply_chat_template(
        chat, tokenize=False
    ) == smollm2.tokenizer().apply_chat_template(chat, tokenize=False)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2.save(folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
