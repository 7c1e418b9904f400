"""PhiConfig: its range, its arithmetic, and what it says of values outside."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re

import pytest
import torch
from torchao.core.config import AOBaseConfig

import phiquant
from phiquant import PhiConfig, PhiTensor
from tests.support import compressed, weight


def test_the_default() -> None:
    config = PhiConfig()
    assert dataclasses.asdict(config) == {
        "index_bits": 4,
        "deviation_bits": 4,
        "group_size": 64,
        "grid": "phi",
        "fit": "joint",
        "exact": False,
    }
    assert config.bits_per_weight == 8.25
    assert isinstance(config, AOBaseConfig)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("deviation_bits", [0, 2, 4, 8])
@pytest.mark.parametrize("index_bits", [2, 3, 4, 5, 6])
def test_bits_per_weight_are_those_of_a_tensor(
    index_bits: int, deviation_bits: int, group_size: int
) -> None:
    names = {
        "index_bits": index_bits,
        "deviation_bits": deviation_bits,
        "group_size": group_size,
    }
    assert PhiConfig(**names).bits_per_weight == compressed(2, 256, **names).bits_per_weight


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("index_bits", 1),
        ("index_bits", 7),
        ("index_bits", 4.0),
        ("index_bits", True),
        ("index_bits", "4"),
        ("index_bits", None),
        ("deviation_bits", 1),
        ("deviation_bits", -2),
        ("deviation_bits", False),
        ("deviation_bits", [4]),
        ("group_size", 0),
        ("group_size", 63),
        ("group_size", 256),
        ("grid", "fibonacci"),
        ("grid", None),
        ("fit", "exactly"),
        ("fit", 1),
    ],
)
def test_values_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be one of .*got {re.escape(repr(value))}$"):
        PhiConfig(**{name: value})


def test_every_fit_and_grid_encodes() -> None:
    for grid in ("phi", "golden"):
        for fit in ("joint", "index", "deviation"):
            for deviation_bits in (0, 4):
                tensor = compressed(4, 64, grid=grid, fit=fit, deviation_bits=deviation_bits)
                assert (tensor.grid, tensor.fit) == (grid, fit)
                assert tensor.dequantize().isfinite().all()


def test_it_is_a_value() -> None:
    config = PhiConfig(index_bits=5, fit="index")
    assert config == PhiConfig(index_bits=5, fit="index") != PhiConfig()
    assert hash(config) == hash(PhiConfig(index_bits=5, fit="index"))
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.index_bits = 3  # type: ignore[misc]


def test_embeddings_keep_four_deviation_bits() -> None:
    assert PhiConfig(deviation_bits=0).for_embedding() == PhiConfig(deviation_bits=4)
    assert PhiConfig(deviation_bits=8).for_embedding() == PhiConfig(deviation_bits=8)


@pytest.mark.parametrize("config", [{"index_bits": 4}, "phi", 4, PhiConfig])
def test_what_is_no_config_is_refused(config: object) -> None:
    model = torch.nn.Linear(128, 16)
    for use in (
        lambda: phiquant.quantize_(model, config),
        lambda: phiquant.preview(model, config),
        lambda: PhiTensor.from_hp(weight(4, 64), config),
    ):
        with pytest.raises(TypeError, match="config: expected a PhiConfig, got"):
            use()


class TestExact:
    @pytest.mark.parametrize("deviation_bits", [2, 4, 8])
    @pytest.mark.parametrize("fit", ["joint", "index", "deviation", "exact"])
    def test_every_depth_and_fit_that_has_one(self, fit: str, deviation_bits: int) -> None:
        config = PhiConfig(deviation_bits=deviation_bits, fit=fit, exact=True)
        assert config.for_embedding().exact
        assert config.bits_per_weight == PhiConfig(deviation_bits=deviation_bits).bits_per_weight
        assert PhiTensor.from_hp(weight(2, 64), config).fit == fit

    def test_it_needs_a_deviation(self) -> None:
        with pytest.raises(ValueError, match=r"^deviation_bits must be 2, 4 or 8 with exact=True"):
            PhiConfig(deviation_bits=0, exact=True)

    def test_its_fit_needs_it(self) -> None:
        with pytest.raises(ValueError, match=r"^fit='exact' minimises the remainder, which needs"):
            PhiConfig(fit="exact")

    @pytest.mark.parametrize("value", [1, 0, None, "yes"])
    def test_it_is_true_or_false(self, value: object) -> None:
        with pytest.raises(ValueError, match=f"^exact must be True or False, got {value!r}$"):
            PhiConfig(exact=value)  # type: ignore[arg-type]

    def test_a_layout_is_lossy_unless_a_dtype_is_stored(self) -> None:
        config = PhiConfig(exact=True)
        assert config.layout(64, 0).stored_dtype is None
        assert config.layout(64, 0, torch.float16).stored_dtype == torch.float16
