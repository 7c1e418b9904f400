"""PhiTensor: making one, reading it at its tiers, and the weights that cannot become one."""

from __future__ import annotations

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchao.utils import TorchAOBaseTensor

import phiquant
from phiquant import PhiConfig, PhiTensor
from tests.support import DTYPES, compressed, relative, run_python, weight


class TestMaking:
    @pytest.mark.parametrize("deviation_bits", [0, 2, 4, 8])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_attributes(self, dtype: torch.dtype, deviation_bits: int) -> None:
        tensor = compressed(3, 5, 100, dtype=dtype, deviation_bits=deviation_bits, fit="index")
        assert isinstance(tensor, TorchAOBaseTensor)
        assert (tensor.shape, tensor.dtype) == ((3, 5, 100), dtype)
        assert tensor.stride() == (500, 100, 1)
        assert (tensor.columns, tensor.group_size, tensor.fit) == (100, 64, "index")
        assert tensor.stored_dtype == dtype
        assert not tensor.requires_grad
        assert (tensor.deviation_plane is None) == (deviation_bits == 0)
        assert (tensor.deviation_low_plane is None) == (deviation_bits < 8)
        assert tensor.index_plane.shape == (3, 5, 64)
        assert tensor.stored_bytes == 15 * (64 + 16 * deviation_bits + 4)
        assert tensor.bits_per_weight == tensor.stored_bytes * 8 / 1500
        assert tensor.nbytes == 1500 * dtype.itemsize

    @pytest.mark.parametrize(
        ("deviation_bits", "error"), [(0, 0.1), (2, 0.03), (4, 7e-3), (8, 5e-4)]
    )
    def test_a_tier_is_as_near_as_its_bits_allow(self, deviation_bits: int, error: float) -> None:
        """Each two bits more bring it near four times; far less would be a broken codec."""
        measured = relative(
            compressed(64, 512, deviation_bits=deviation_bits).dequantize(), weight(64, 512)
        )
        assert error / 2.5 < measured < error

    @pytest.mark.parametrize("columns", [1, 2, 31, 63, 64, 65, 127, 200])
    def test_short_last_groups(self, columns: int) -> None:
        tensor = compressed(8, columns, deviation_bits=8)
        assert tensor.dequantize().shape == (8, columns)
        assert relative(tensor.dequantize(), weight(8, columns)) < 2e-3

    def test_views_of_a_weight_encode_like_copies_of_it(self) -> None:
        wide = weight(128, 64)
        for view in (
            wide.t(),
            wide[::2, 1:],
            weight(1, 128).expand(4, 128),
            wide[:, :1].expand(128, 70),
        ):
            assert torch.equal(PhiTensor.from_hp(view), PhiTensor.from_hp(view.clone()))

    def test_zeros_signs_and_extremes(self) -> None:
        largest = torch.finfo(torch.float32).max
        rows = torch.zeros(4, 64)
        rows[1, 0], rows[2], rows[3, ::2] = -0.0, 2.0**-149, largest
        decoded = PhiTensor.from_hp(rows, PhiConfig(deviation_bits=8)).dequantize()
        assert decoded.isfinite().all()
        assert decoded[:2].abs().max() < 1e-12 * largest
        assert relative(decoded[3], rows[3]) < 1e-3
        alone = PhiTensor.from_hp(rows[:1], PhiConfig(deviation_bits=8)).dequantize()
        assert alone.abs().max() < 1e-6

    def test_the_weight_is_left_as_it_was(self) -> None:
        original = weight(8, 128)
        kept = original.clone()
        tensor = PhiTensor.from_hp(original)
        original.zero_()
        assert relative(tensor.dequantize(), kept) < 0.01

    def test_a_parameter_that_needs_a_gradient(self) -> None:
        parameter = nn.Parameter(weight(8, 128))
        tensor = PhiTensor.from_hp(parameter)
        assert not tensor.requires_grad
        assert not tensor.dequantize().requires_grad

    def test_importance_moves_the_error_to_where_it_matters_less(self) -> None:
        importance = torch.ones(128)
        importance[:8] = 1e4
        of = weight(256, 128)
        config = PhiConfig(deviation_bits=0)
        plain = PhiTensor.from_hp(of, config).dequantize()
        weighted = PhiTensor.from_hp(of, config, importance=importance).dequantize()
        assert relative(weighted[:, :8], of[:, :8]) < 0.95 * relative(plain[:, :8], of[:, :8])


class TestBadInput:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_values_that_are_not_finite(self, dtype: torch.dtype, value: float) -> None:
        of = weight(8, 64, dtype=dtype)
        of[7, 63] = value
        with pytest.raises(ValueError, match=r"^head\.weight: holds NaN or infinity; only finite"):
            PhiTensor.from_hp(of, name="head.weight")

    @pytest.mark.parametrize(
        "dtype",
        [
            torch.float64,
            torch.int8,
            torch.uint8,
            torch.int64,
            torch.bool,
            torch.complex64,
            torch.float8_e4m3fn,
        ],
    )
    def test_dtypes(self, dtype: torch.dtype) -> None:
        with pytest.raises(TypeError, match=f"^weight: expected bfloat16, .*got {dtype}"):
            PhiTensor.from_hp(torch.ones(2, 64).to(dtype))

    @pytest.mark.parametrize("shape", [(0, 64), (4, 0), (0, 0), (2, 0, 64), (64,), ()])
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"^weight: expected .*got shape \("):
            PhiTensor.from_hp(torch.ones(shape))

    def test_the_meta_device(self) -> None:
        with pytest.raises(ValueError, match=r"^w: is on the meta device and holds no values"):
            PhiTensor.from_hp(torch.ones(2, 64, device="meta"), name="w")

    def test_layouts(self) -> None:
        with pytest.raises(
            ValueError, match=r"expected a dense tensor, got a torch.sparse_coo one"
        ):
            PhiTensor.from_hp(torch.eye(64).to_sparse())
        nested = torch.nested.nested_tensor([torch.ones(2, 64), torch.ones(3, 64)])
        with pytest.raises(ValueError, match="expected a dense tensor, got a nested one"):
            PhiTensor.from_hp(nested)

    @pytest.mark.parametrize("value", [None, [[1.0] * 64], 3])
    def test_no_tensor_at_all(self, value: object) -> None:
        with pytest.raises(TypeError, match=r"^weight: expected a torch.Tensor, got"):
            PhiTensor.from_hp(value)  # type: ignore[arg-type]

    def test_compressing_twice(self) -> None:
        with pytest.raises(TypeError, match=r"^weight: is compressed already; use \.dequantize"):
            PhiTensor.from_hp(compressed(4, 64))

    @pytest.mark.parametrize(
        "importance",
        [
            torch.ones(65),
            torch.ones(2, 64),
            -torch.ones(64),
            torch.full((64,), float("nan")),
            torch.full((64,), float("inf")),
        ],
    )
    def test_importance(self, importance: Tensor) -> None:
        with pytest.raises(ValueError, match=r"^importance: expected 64 finite values >= 0"):
            PhiTensor.from_hp(weight(4, 64), importance=importance)


class TestTiers:
    @pytest.mark.parametrize(("stored", "read"), [(8, 4), (8, 0), (4, 0), (2, 0)])
    def test_a_tier_shares_planes_and_equals_a_tensor_made_for_it(
        self, stored: int, read: int
    ) -> None:
        deep = compressed(16, 200, deviation_bits=stored, fit="index")
        tier = deep.at(read)
        assert torch.equal(
            tier.dequantize(), compressed(16, 200, deviation_bits=read, fit="index").dequantize()
        )
        assert tier.index_plane is deep.index_plane
        assert tier.fqn == deep.fqn
        assert tier.stored_bytes < deep.stored_bytes
        x = torch.randn(3, 200)
        product = nn.functional.linear(x, tier)
        torch.testing.assert_close(product, x @ tier.dequantize().t())

    def test_the_deepest_tier_is_itself(self) -> None:
        tensor = compressed(4, 64)
        assert torch.equal(tensor.at(4), tensor)

    @pytest.mark.parametrize(
        ("stored", "read"), [(4, 2), (4, 8), (2, 4), (8, 2), (0, 4), (4, None)]
    )
    def test_tiers_that_are_not_there(self, stored: int, read: int) -> None:
        with pytest.raises(ValueError, match=f"deviation_bits must be one of .*got {read}"):
            compressed(4, 64, deviation_bits=stored).at(read)


def test_dequantize_to_other_dtypes() -> None:
    tensor = compressed(4, 64)
    exact = tensor.dequantize(torch.float32)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(tensor.dequantize(dtype), exact.to(dtype))
    with pytest.raises(ValueError, match="dtype: expected bfloat16, float16 or float32"):
        tensor.dequantize(torch.int32)


def test_the_repr_shows_what_it_is_and_no_values() -> None:
    assert repr(compressed(8, 128)) == (
        "PhiTensor(shape=(8, 128), planes=index 4 + deviation 4, bits_per_weight=8.25, "
        "group_size=64, grid='phi', dtype=torch.float32, device='cpu')"
    )
    assert "planes=index 5, bits" in repr(compressed(8, 128, index_bits=5, deviation_bits=0))
    model = nn.Linear(128, 8)
    phiquant.quantize_(model)
    assert str(model.weight) == repr(model.weight.data) == f"{model.weight}"
    assert "shape=(0, 128)" in repr(model.weight[:0])


class TestTravel:
    """Copies, files and other processes."""

    @staticmethod
    def check(copied: Tensor, tensor: PhiTensor) -> None:
        assert isinstance(copied, PhiTensor)
        assert torch.equal(copied, tensor)
        assert copied.index_plane.data_ptr() != tensor.index_plane.data_ptr()
        assert (copied.fqn, copied.fit) == (tensor.fqn, tensor.fit)
        assert torch.equal(copied.dequantize(), tensor.dequantize())
        assert copied.is_exact == tensor.is_exact
        assert not tensor.is_exact or copied.verify()

    @pytest.fixture(params=[0, 4, 8, "exact"])
    def model(self, request: pytest.FixtureRequest) -> nn.Module:
        model = nn.Sequential(nn.Linear(128, 16))
        exact = request.param == "exact"
        if exact:
            model[0].weight.data[3, 5] = float("inf")
        bits = 4 if exact else request.param
        phiquant.quantize_(model, PhiConfig(deviation_bits=bits, exact=exact))
        return model

    def test_deepcopy(self, model: nn.Module) -> None:
        copied = copy.deepcopy(model)
        self.check(copied[0].weight, model[0].weight)
        assert isinstance(copied[0].weight, nn.Parameter)

    def test_pickle(self, model: nn.Module) -> None:
        self.check(pickle.loads(pickle.dumps(model))[0].weight, model[0].weight)

    def test_torch_save_with_weights_only(self, model: nn.Module) -> None:
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        assert file.tell() < 8000 + model[0].weight.stored_bytes
        file.seek(0)
        self.check(torch.load(file, weights_only=True)["0.weight"], model[0].weight)

    def test_a_queue_between_processes(self, model: nn.Module) -> None:
        """torch.multiprocessing's pickler moves the planes to shared memory by itself."""
        weight = model[0].weight
        received = pickle.loads(bytes(ForkingPickler.dumps(weight)))
        assert torch.equal(received, weight)

    def test_a_file_is_read_by_another_process(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(128, 16))
        phiquant.quantize_(model)
        path = str(tmp_path / "model.pt")
        torch.save(model.state_dict(), path)
        result = run_python(
            f"""
            import phiquant, torch
            weight = torch.load({path!r}, weights_only=True)["0.weight"]
            print(type(weight).__name__, weight.dequantize().double().sum().item())
            """
        )
        expected = model[0].weight.dequantize().double().sum().item()
        assert result.stdout.split() == ["PhiTensor", str(expected)], result.stderr

    def test_share_memory_is_refused(self, model: nn.Module) -> None:
        with pytest.raises(RuntimeError, match=r"^0\.weight: share_memory_\(\) is not supported"):
            model.share_memory()


class TestGradients:
    def test_there_are_none(self) -> None:
        model = nn.Linear(128, 16)
        phiquant.quantize_(model)
        for ask in (
            lambda: model.requires_grad_(True),
            lambda: setattr(model.weight, "requires_grad", True),
            lambda: nn.Parameter(model.weight.data),
        ):
            with pytest.raises(RuntimeError, match=r"^weight: a compressed weight has no gradient"):
                ask()
        assert not model.weight.requires_grad
        model.requires_grad_(False)
        model.weight.requires_grad = False

    def test_the_error_tells_how_to_make_a_parameter(self) -> None:
        with pytest.raises(RuntimeError, match=r"nn\.Parameter\(weight, requires_grad=False\)"):
            nn.Parameter(compressed(4, 64))
        assert not nn.Parameter(compressed(4, 64), requires_grad=False).requires_grad


def test_flattening_sees_what_is_replaced() -> None:
    tensor = PhiTensor.from_hp(torch.randn(8, 128), PhiConfig())
    names, attributes = tensor.__tensor_flatten__()
    names.clear()
    attributes.clear()
    names, attributes = tensor.__tensor_flatten__()
    assert names == ["index_plane", "scale_plane", "deviation_plane"]
    tensor.exponent, tensor.deviation_plane = attributes["exponent"] + 1, None
    assert tensor.__tensor_flatten__()[0] == ["index_plane", "scale_plane"]
    assert tensor.__tensor_flatten__()[1] == attributes | {"exponent": tensor.exponent}
    assert copy.deepcopy(tensor).__tensor_flatten__() == tensor.__tensor_flatten__()
