"""from_pretrained with "disk" in the device_map: compressed, written as planes and mapped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from phiquant import PhiQuantConfig, PhiTensor
from phiquant.integrations.hf_disk import DiskWeights
from tests.integrations.support import assert_same, llama, load, prompt, saved

PLACES = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "disk",
    "model.layers.0.mlp": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(llama(), tmp_path / "llama")


def written(folder: Path) -> set[str]:
    return {file.name.removesuffix(".safetensors") for file in folder.iterdir()}


@pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
def test_layers_on_disk_are_the_same(folder: Path, tmp_path: Path, exact: bool) -> None:
    planes, given = tmp_path / "planes", dict(PLACES)
    config = PhiQuantConfig(exact=exact, offload_folder=planes)
    loaded = load(folder, quantization_config=config, device_map=given)
    assert given == PLACES
    plain = load(folder, quantization_config=PhiQuantConfig(exact=exact))
    assert_same(loaded, plain)
    assert loaded.hf_quantizer.report == plain.hf_quantizer.report
    attention = [f"self_attn.{leaf}_proj" for leaf in "qkvo"]
    mlp = [f"mlp.{leaf}_proj" for leaf in ("up", "gate", "down")]
    names = {f"model.layers.0.{leaf}.weight" for leaf in attention}
    names |= {f"model.layers.1.{leaf}.weight" for leaf in attention + mlp}
    assert written(planes) == names
    assert torch.equal(loaded(**prompt()).logits, plain(**prompt()).logits)
    output = loaded.generate(**prompt(), max_new_tokens=4, do_sample=False)
    assert torch.equal(output, plain.generate(**prompt(), max_new_tokens=4, do_sample=False))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_an_automatic_map_that_runs_out_of_memory(tmp_path: Path, tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    folder, planes = saved(model, tmp_path / "llama"), tmp_path / "planes"
    config = PhiQuantConfig(offload_folder=planes)
    room = {"cpu": 60_000, "disk": 10**9}
    loaded = load(folder, quantization_config=config, device_map="auto", max_memory=room)
    assert_same(loaded, load(folder, quantization_config=PhiQuantConfig()))
    assert any(name.startswith("model.layers.1") for name in written(planes))
    assert "model.embed_tokens.weight" not in written(planes)
    assert not any(parameter.is_meta for parameter in loaded.parameters())


def test_what_is_left_alone_goes_to_disk_too(folder: Path, tmp_path: Path) -> None:
    planes = tmp_path / "planes"
    config = PhiQuantConfig(
        modules_to_not_convert="layers.1.self_attn.q_proj", offload_folder=planes
    )
    loaded = load(folder, quantization_config=config, device_map=PLACES)
    query = loaded.model.layers[1].self_attn.q_proj.weight
    assert not isinstance(query, PhiTensor)
    assert "model.layers.1.self_attn.q_proj.weight" in written(planes)
    assert torch.equal(query, load(folder).model.layers[1].self_attn.q_proj.weight)
    assert query.requires_grad


def test_a_model_on_disk_becomes_plain_again(folder: Path, tmp_path: Path) -> None:
    config = PhiQuantConfig(exact=True, offload_folder=tmp_path / "planes")
    plain = load(folder, quantization_config=config, device_map=PLACES).dequantize()
    assert_same(plain, load(folder))


@pytest.mark.parametrize(
    "how",
    [
        {"device_map": PLACES},
        {"device_map": "auto", "max_memory": {"cpu": 60_000, "disk": 10**9}},
    ],
    ids=["given", "auto"],
)
def test_a_folder_is_asked_for(folder: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"disk; say where with PhiQuantConfig\(offload_folder"):
        load(folder, quantization_config=PhiQuantConfig(), offload_folder=tmp_path, **how)


def test_a_compressed_checkpoint_is_mapped_from_its_own_files(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder, quantization_config=PhiQuantConfig())
    loaded.save_pretrained(tmp_path / "compressed")
    again = load(tmp_path / "compressed", device_map=PLACES)
    assert_same(again, loaded)
    assert torch.equal(again(**prompt()).logits, loaded(**prompt()).logits)


@pytest.mark.cuda
def test_a_gpu_fetches_layers_from_disk(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    # accelerate knows no device inside of a part that is elsewhere, so there is no entry for mlp
    places = dict.fromkeys(PLACES, 0) | {"model.layers.1": "disk"}
    del places["model.layers.0.mlp"]
    config = PhiQuantConfig(offload_folder=tmp_path / "planes")
    loaded = load(folder, quantization_config=config, device_map=places)
    assert loaded.model.layers[1].mlp.up_proj.weight.is_meta
    assert loaded.model.layers[0].mlp.up_proj.weight.is_cuda
    plain = load(folder, quantization_config=PhiQuantConfig())
    inputs = {name: value.cuda() for name, value in prompt().items()}
    expected = plain(**prompt()).logits
    torch.testing.assert_close(loaded(**inputs).logits.cpu(), expected, rtol=1e-3, atol=1e-3)


class TestDiskWeights:
    def test_the_longest_entry_decides(self) -> None:
        disk = DiskWeights("somewhere")
        assert not disk.has("a.weight")
        given = {"": "disk", "a": 0, "a.b": "disk", "c.weight": "cpu"}
        assert disk.take_from(given) == {"": "cpu", "a": 0, "a.b": "cpu", "c.weight": "cpu"}
        assert [disk.has(name) for name in ("x", "a.weight", "ab.w", "a.b.w", "c.weight")] == [
            True,
            False,
            True,
            True,
            False,
        ]

    def test_nothing_on_disk_needs_no_folder(self) -> None:
        assert DiskWeights(None).take_from({"": "cpu"}) == {"": "cpu"}

    def test_a_compressed_checkpoint_needs_no_folder(self) -> None:
        disk = DiskWeights(None, are_mapped=True)
        assert disk.take_from({"a": "disk", "b": 0}) == {"a": "cpu", "b": 0}
