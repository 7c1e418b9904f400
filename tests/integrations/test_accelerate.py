"""accelerate's hooks move compressed weights as planes; what they cannot do is refused in words.

The machine has no GPU: weights that are not in use wait on the meta device, as they do with one.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_submodules
from safetensors.torch import save_file
from torch import Tensor, nn

import phiquant
from phiquant import PhiConfig, PhiTensor
from tests.support import TiedModel

CONFIGS = [
    pytest.param(PhiConfig(), id="default"),
    pytest.param(PhiConfig(exact=True), id="exact"),
]
PARTS = ("embed", "layers.0", "layers.1", "head")


def made(config: PhiConfig | None = None, *, tied: bool = True) -> TiedModel:
    return copy.deepcopy(_made(config, tied))


@functools.cache
def _made(config: PhiConfig | None, tied: bool) -> TiedModel:
    torch.manual_seed(0)
    model = TiedModel(words=200, width=256).eval()
    if not tied:
        model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    phiquant.quantize_(model, config)
    return model


def ids() -> Tensor:
    return torch.randint(0, 200, (2, 5), generator=torch.Generator().manual_seed(1))


def parked(model: nn.Module) -> dict[str, bool]:
    """Which compressed weights are on the meta device at the moment."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: p.is_meta for name, p in named if isinstance(p, PhiTensor)}


def cpu_offload(model: nn.Module) -> nn.Module:
    return accelerate.cpu_offload(model, execution_device="cpu")


def dispatch(model: nn.Module) -> nn.Module:
    return accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
class TestHooks:
    @pytest.mark.parametrize("attach", [cpu_offload, dispatch])
    def test_the_outputs_are_the_same(
        self, config: PhiConfig, tied: bool, attach: Callable[[nn.Module], nn.Module]
    ) -> None:
        expected = made(config, tied=tied)(ids())
        model = attach(made(config, tied=tied))
        assert len(parked(model)) == 4
        for _ in range(2):
            assert torch.equal(model(ids()), expected)

    def test_weights_wait_elsewhere_as_planes_and_come_back(
        self, config: PhiConfig, tied: bool
    ) -> None:
        before = made(config, tied=tied)
        model = cpu_offload(made(config, tied=tied))
        assert all(parked(model).values())
        with pytest.raises(ValueError, match=r"^embed\.weight: is offloaded by accelerate"):
            phiquant.dequantize_(model)
        model(ids())
        assert all(parked(model).values())
        assert isinstance(model.head.weight, nn.Parameter)
        remove_hook_from_submodules(model)
        assert not any(parked(model).values())
        for name, parameter in before.named_parameters(remove_duplicate=False):
            assert torch.equal(model.get_parameter(name), parameter), name
        assert phiquant.dequantize_(model).head.weight.dtype == torch.float32

    def test_mapped_planes_are_an_offload_to_disk(
        self, config: PhiConfig, tied: bool, tmp_path: Path
    ) -> None:
        expected = made(config, tied=tied)(ids())
        model = phiquant.offload_(made(config, tied=tied), tmp_path)
        planes = model.layers[0].weight.data_ptr()
        waiting = dict(model.state_dict())
        model = accelerate.cpu_offload(model, execution_device="cpu", state_dict=waiting)
        assert waiting["layers.0.weight"].data_ptr() == planes
        assert all(parked(model).values())
        assert torch.equal(model(ids()), expected)


def test_different_weights_are_not_taken_for_tied_ones() -> None:
    """Hooks tell tied weights by their address, which must not be the same for all."""
    model = dispatch(made())
    assert model.head.weight is model.embed.weight
    assert model.layers[0].weight is not model.embed.weight
    assert not torch.equal(model.layers[0].weight, model.layers[1].weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "attach",
    [
        lambda model, folder: accelerate.disk_offload(model, folder, execution_device="cpu"),
        lambda model, folder: accelerate.dispatch_model(
            model, dict.fromkeys(PARTS[:3], "cpu") | {"head": "disk"}, offload_dir=folder
        ),
    ],
    ids=["disk_offload", "dispatch_model"],
)
def test_its_offload_to_disk_is_refused_before_plain_values_are_written(
    tmp_path: Path, attach: Callable[[nn.Module, Path], Any], dtype: torch.dtype
) -> None:
    model = made().to(dtype)
    with pytest.raises(RuntimeError, match=r"embed\.weight: .*phiquant\.offload_\(model, folder\)"):
        attach(model, tmp_path)
    assert not list(tmp_path.iterdir())
    assert not any(parked(model).values())


class TestCheckpoints:
    def test_a_compressed_state_dict_into_an_empty_model(self, tmp_path: Path) -> None:
        model = made(PhiConfig(exact=True), tied=False)
        torch.save(model.state_dict(), tmp_path / "model.bin")
        with accelerate.init_empty_weights():
            empty = TiedModel(words=200, width=256)
            empty.head.weight = nn.Parameter(empty.head.weight.detach())
        empty.requires_grad_(False)
        loaded = accelerate.load_checkpoint_and_dispatch(
            empty, str(tmp_path / "model.bin"), device_map={"": "cpu"}
        )
        assert parked(loaded) == dict.fromkeys(parked(model), False)
        assert torch.equal(loaded(ids()), model(ids()))

    def test_a_plain_one_into_a_compressed_model_is_refused(self, tmp_path: Path) -> None:
        plain = TiedModel(words=200, width=256)
        weights = {name: value.contiguous() for name, value in plain.state_dict().items()}
        del weights["head.weight"]
        save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(TypeError, match=r"cannot be replaced by a plain torch.float32 tensor"):
            accelerate.load_checkpoint_and_dispatch(
                made(), str(tmp_path), device_map={"": "cpu"}, strict=False
            )


def test_a_device_map_by_compressed_sizes() -> None:
    """It counts logical bytes unless it is told; `special_dtypes` tells it of 8 bits a weight."""
    model = made(tied=False)
    room = {"cpu": 140_000, "disk": 10**9}
    counted = accelerate.infer_auto_device_map(model, room)
    assert "disk" in counted.values()
    sizes = dict.fromkeys(parked(model), torch.int8)
    told = accelerate.infer_auto_device_map(model, {"cpu": 300_000}, special_dtypes=sizes)
    assert set(told.values()) == {"cpu"}


@pytest.mark.cuda
class TestOnAGpu:
    @pytest.mark.parametrize("mapped", [False, True], ids=["memory", "mapped"])
    @pytest.mark.parametrize("config", CONFIGS)
    def test_some_parts_wait_on_the_cpu(
        self, tmp_path: Path, config: PhiConfig, mapped: bool
    ) -> None:
        model, expected = made(config), made(config)(ids())
        if mapped:
            phiquant.offload_(model, tmp_path)
        places = {"embed": 0, "layers.0": 0, "layers.1": "cpu", "head": 0}
        model = accelerate.dispatch_model(model, places)
        assert parked(model) == {
            "embed.weight": False,
            "layers.0.weight": False,
            "layers.1.weight": True,
            "head.weight": False,
        }
        assert model.embed.weight.is_cuda
        torch.testing.assert_close(model(ids()).cpu(), expected, rtol=1e-4, atol=1e-4)

    def test_all_of_it_waits_on_the_cpu(self) -> None:
        expected = made()(ids())
        model = accelerate.cpu_offload(made(), execution_device=0)
        for _ in range(2):
            torch.testing.assert_close(model(ids()).cpu(), expected, rtol=1e-4, atol=1e-4)
            assert all(parked(model).values())
