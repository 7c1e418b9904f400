"""phiquant.save and phiquant.load: any module, as it was."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import phiquant
from phiquant import CheckpointError, PhiConfig, PhiTensor
from phiquant.checkpoint import modules
from tests.checkpoint.support import Holder, RawFile, kinds, same_decodes
from tests.support import DTYPES, TiedModel, same_bits


class Everything(nn.Module):
    """Layers of all kinds, buffers that are stored and buffers that are not, frozen parameters."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 128)
        self.line = nn.Linear(128, 96)
        self.convolution = nn.Conv2d(8, 16, 3)
        self.norm = nn.BatchNorm1d(96)
        self.frozen = nn.Linear(96, 64)
        self.frozen.requires_grad_(False)
        self.register_buffer("steps", torch.arange(4))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("cache", torch.full((3,), 5.0), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("absent", None)
        self.temperature = nn.Parameter(torch.tensor(0.5))
        self.to(dtype)

    def forward(self, indices: Tensor) -> Tensor:
        return self.frozen(self.norm(self.line(self.embed(indices)))) * self.temperature


def made(dtype: torch.dtype = torch.float32, **config: Any) -> Everything:
    torch.manual_seed(1)
    model = Everything(dtype).eval()
    model.norm.running_mean.normal_()
    phiquant.quantize_(model, PhiConfig(**config))
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())


def same_state(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = state(one), state(other)
    return mine.keys() == theirs.keys() and all(
        same(mine[name], theirs[name])
        and isinstance(mine[name], nn.Parameter) == isinstance(theirs[name], nn.Parameter)
        for name in mine
    )


def same(one: Tensor, other: Tensor) -> bool:
    if one.dtype.is_floating_point:
        return one.requires_grad == other.requires_grad and same_decodes(one, other)
    return one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
@pytest.mark.parametrize("target", ["folder", "a.safetensors", "shards"])
def test_a_model_comes_back(tmp_path: Path, dtype: torch.dtype, exact: bool, target: str) -> None:
    model, path = made(dtype, exact=exact), tmp_path / "deep" / target
    phiquant.save(model, path, max_shard_size="9KB" if target == "shards" else "5GB")
    again = phiquant.load(lambda: Everything(dtype).eval(), path)
    assert same_state(model, again)
    assert again.nothing is None
    assert again.absent is None
    assert again.cache.tolist() == [5, 5, 5]
    words = torch.arange(7)
    assert same_bits(model(words), again(words))
    assert again.line.weight.fqn == "line.weight"


@pytest.mark.parametrize("tier", ["index", "deviation", "exact"])
def test_a_model_at_a_tier(tmp_path: Path, tier: str) -> None:
    model = made(exact=True)
    phiquant.save(model, tmp_path)
    again = phiquant.load(Everything, tmp_path, tier=tier).eval()
    words = torch.arange(7)
    with phiquant.at_precision(model, tier):
        assert same_bits(model(words), again(words))
    assert again.line.weight.is_exact == (tier == "exact")


def test_a_module_is_filled_in_place(tmp_path: Path) -> None:
    model = made()
    phiquant.save(model, tmp_path)
    other = Everything().eval()
    assert phiquant.load(other, tmp_path) is other
    assert same_state(model, other)
    assert phiquant.load(other, tmp_path) is other  # compressed ones are replaced as well
    assert same_state(model, other)


def test_a_model_made_in_another_dtype(tmp_path: Path) -> None:
    """The file's dtype wins, as that of load_state_dict(assign=True)."""
    phiquant.save(made(torch.bfloat16), tmp_path)
    assert phiquant.load(Everything, tmp_path).line.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
@pytest.mark.parametrize("size", ["5GB", "9KB"])
def test_a_reloaded_model_is_saved_where_it_is_mapped(
    tmp_path: Path, exact: bool, size: str
) -> None:
    model = made(exact=exact)
    phiquant.save(model, tmp_path, max_shard_size=size)
    again = phiquant.load(Everything, tmp_path).eval()
    again.temperature.data.fill_(2)
    phiquant.save(again, tmp_path, max_shard_size=size)
    model.temperature.data.fill_(2)
    assert same_state(again, model)  # still on the old file's memory
    assert same_state(phiquant.load(Everything, tmp_path), model)


def test_what_is_written_to_a_loaded_model_stays_in_memory(tmp_path: Path) -> None:
    phiquant.save(made(), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    again = phiquant.load(Everything, tmp_path)
    for tensor in state(again).values():
        if isinstance(tensor, PhiTensor):
            tensor.index_plane.zero_()
        else:
            tensor.data.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_shared_weights_are_stored_once_and_shared_again(tmp_path: Path) -> None:
    model = TiedModel()
    phiquant.quantize_(model, PhiConfig(exact=True))
    model.layers[1] = model.layers[0]
    phiquant.save(model, tmp_path)
    checkpoint = phiquant.open(tmp_path)
    assert "head.weight" not in checkpoint
    assert checkpoint.tied == {"head.weight": "embed.weight"}  # modules have their first names
    again = TiedModel()
    again.layers[1] = again.layers[0]
    phiquant.load(again, tmp_path)
    assert again.head.weight is again.embed.weight
    words = torch.arange(5)
    assert same_bits(again(words), model(words))


def test_weights_shared_in_the_file_alone_are_shared_afterwards(tmp_path: Path) -> None:
    model = TiedModel()
    phiquant.quantize_(model)
    phiquant.save(model, tmp_path)
    again = TiedModel()
    again.head.weight = nn.Parameter(torch.zeros(100, 128))
    phiquant.load(again, tmp_path)
    assert again.head.weight is again.embed.weight


def test_weights_shared_in_the_model_alone_may_not_differ(tmp_path: Path) -> None:
    model = TiedModel()
    model.head.weight = nn.Parameter(torch.zeros(100, 128))
    phiquant.save(model, tmp_path)
    with pytest.raises(CheckpointError, match="are two, but shared in the model"):
        phiquant.load(TiedModel(), tmp_path)


def test_a_transformer_encoder_leaves_its_fast_path(tmp_path: Path) -> None:
    def encoder() -> nn.Module:
        layer = nn.TransformerEncoderLayer(64, 2, 128, batch_first=True)
        return nn.TransformerEncoder(layer, 2).eval()

    model = encoder()
    phiquant.quantize_(model, PhiConfig(exact=True))
    phiquant.save(model, tmp_path)
    again = phiquant.load(encoder, tmp_path).eval()
    x = torch.randn(2, 5, 64)
    with torch.inference_mode():
        assert same_bits(again(x), model(x))
        padding = torch.tensor([[False] * 4 + [True]] * 2)
        one, other = (m(x, src_key_padding_mask=padding) for m in (again, model))
        assert same_bits(one, other)


def test_names_of_any_kind(tmp_path: Path) -> None:
    names = ["weight", "a_b", "Ünïcode ☃", "new\nline", 'quo"te', "__x__", "_x", "index"]
    model = Holder(**{name: kinds()["4+4"]() for name in names})
    phiquant.save(model, tmp_path)
    again = phiquant.load(Holder(**{name: torch.zeros(8, 200) for name in names}), tmp_path)
    for name in names:
        assert same_decodes(getattr(again, name), getattr(model, name)), name


# --- errors ----------------------------------------------------------------------------------


def small() -> nn.Module:
    return nn.Sequential(OrderedDict(a=nn.Linear(128, 64), b=nn.BatchNorm1d(64)))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = small()
    phiquant.quantize_(model)
    path = tmp_path / "model.safetensors"
    phiquant.save(model, path)
    return path


OTHERS: dict[str, tuple[nn.Module, str]] = {
    "more": (nn.Sequential(OrderedDict(small().named_children(), c=nn.Linear(3, 3))),
             "lacks c.weight, c.bias, which the model has"),
    "less": (nn.Sequential(OrderedDict(a=nn.Linear(128, 64))), "the model has no b.bias, b.num_ba"),
    "another shape": (
        nn.Sequential(OrderedDict(a=nn.Linear(128, 65), b=nn.BatchNorm1d(64))),
        r"a.bias: the model wants shape \(65,\), the file has \(64,\)|"
        r"a.weight: the model wants shape \(65, 128\), the file has \(64, 128\)",
    ),
    "transposed": (
        nn.Sequential(OrderedDict(a=nn.Linear(64, 128), b=nn.BatchNorm1d(64))),
        r"a\.(weight|bias): the model wants",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_a_model_that_does_not_fit_is_as_it_was(saved: Path, what: str) -> None:
    model, message = OTHERS[what]
    before = state(model)
    values = {name: tensor.clone() for name, tensor in before.items()}
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: {message}"):
        phiquant.load(model, saved)
    after = state(model)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert all(torch.equal(after[name], values[name]) for name in before)


@pytest.mark.parametrize("number", ["a.bias", "b.running_mean"])
def test_numbers_of_another_kind_are_refused(saved: Path, number: str) -> None:
    file = RawFile.read(saved)
    file.entries[number].dtype = "I32"
    file.write(saved)
    message = rf"model\.safetensors: {number}: the model wants torch.float32, the file has torch.i"
    with pytest.raises(CheckpointError, match=message):
        phiquant.load(small(), saved)


def test_a_compressed_buffer_is_refused(tmp_path: Path) -> None:
    phiquant.save(Holder(x=kinds()["4+4"]()), tmp_path)
    model = nn.Module()
    model.register_buffer("x", torch.zeros(8, 200, dtype=torch.bfloat16))
    with pytest.raises(CheckpointError, match="x: compressed, but a buffer here"):
        phiquant.load(model, tmp_path)


@pytest.mark.parametrize("model", [3, "model", nn.Linear.__name__, lambda: 3], ids=str)
def test_what_is_no_module(saved: Path, model: Any) -> None:
    with pytest.raises(TypeError, match="model: expected"):
        phiquant.load(model, saved)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        phiquant.save(model, saved)


def test_an_error_while_making_a_module_leaves_torch_as_it_was(saved: Path) -> None:
    def failing() -> nn.Module:
        raise KeyError("mine")

    before = nn.Module.register_parameter
    with pytest.raises(KeyError, match="mine"):
        phiquant.load(failing, saved)
    assert nn.Module.register_parameter is before
    assert nn.Linear(2, 2).weight.device.type == "cpu"


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> int:
        return 3


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (WithExtraState(2, 2), TypeError, "model: has extra state"),
        (nn.LazyLinear(3), ValueError, "weight: not initialised yet"),
        (nn.Linear(2, 2, device="meta"), ValueError, "weight: is on the meta device"),
    ],
    ids=["extra state", "lazy", "meta"],
)
def test_what_cannot_be_saved(
    tmp_path: Path, model: nn.Module, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        phiquant.save(model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_factory_makes_no_parameters_in_memory(saved: Path) -> None:
    seen: list[torch.device] = []

    def make() -> nn.Module:
        model = small()
        seen.extend(parameter.device for parameter in model.parameters())
        return model

    phiquant.load(make, saved)
    assert {device.type for device in seen} == {"meta"}


def test_errors_and_names_are_public() -> None:
    assert issubclass(phiquant.CheckpointError, ValueError)
    assert phiquant.save is modules.save
    assert phiquant.load is modules.load
