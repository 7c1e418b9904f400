"""Operations on a PhiTensor: each equals that on the decoded weight, or says why not."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import phiquant
from phiquant import PhiConfig, PhiTensor, ops
from phiquant.aten import fallback
from phiquant.codec import Layout
from tests.support import DTYPES, compressed, same_bits, weight, with_specials


@pytest.fixture(autouse=True)
def nothing_warned_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_warned", set())


@pytest.fixture
def matrix() -> PhiTensor:
    tensor = compressed(16, 192)
    tensor.fqn = "block.weight"
    return tensor


def silently(call: Callable[[], Any]) -> Any:
    """The result of a call that must not fall back, which a warning would tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


class TestProducts:
    """Each runs on the planes: no fallback, no warning."""

    @pytest.mark.parametrize(
        "product",
        [
            lambda x, w: functional.linear(x, w),
            lambda x, w: functional.linear(input=x, weight=w, bias=torch.ones(16)),
            lambda x, w: functional.linear(x, w, bias=None),
            lambda x, w: x @ w.T,
            lambda x, w: x @ w.t(),
            lambda x, w: x @ w.mT,
            lambda x, w: torch.matmul(x, w.transpose(0, 1)),
            lambda x, w: x.matmul(w.transpose(-1, -2)),
            lambda x, w: torch.matmul(x, other=w.permute(1, 0)),
            lambda x, w: x[0] @ w.T,
            lambda x, w: x.expand(2, 3, 5, 192) @ w.T,
            lambda x, w: torch.mm(x, w.T),
            lambda x, w: torch.addmm(torch.ones(16), x, w.T),
            lambda x, w: w @ x.T,
            lambda x, w: w @ x[0],
            lambda x, w: torch.mm(w, x.t()),
            lambda x, w: functional.linear(x, w[4:12]),
            lambda x, w: functional.linear(x[:, 64:], w[:, 64:]),
            lambda x, w: functional.linear(x, w.view(-1, 192)),
        ],
    )
    def test_they_run_on_the_planes(
        self, matrix: PhiTensor, product: Callable[[Tensor, Any], Tensor]
    ) -> None:
        x = torch.randn(5, 192)
        result = silently(lambda: product(x, matrix))
        assert type(result) is Tensor
        torch.testing.assert_close(result, product(x, matrix.dequantize()))

    def test_they_pass_gradients_to_the_input(self, matrix: PhiTensor) -> None:
        for product in (functional.linear, lambda x, w: x @ w.T, lambda x, w: (w @ x.T).T):
            x, y = (torch.ones(5, 192, requires_grad=True) for _ in range(2))
            product(x, matrix).square().sum().backward()
            product(y, matrix.dequantize()).square().sum().backward()
            torch.testing.assert_close(x.grad, y.grad)

    def test_autocast(self, matrix: PhiTensor) -> None:
        x = torch.randn(5, 192)
        bias = torch.ones(16)
        for product in (lambda w: functional.linear(x, w, bias), lambda w: x @ w.T):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                ours, theirs = silently(lambda p=product: p(matrix)), product(matrix.dequantize())
            assert ours.dtype == theirs.dtype == torch.bfloat16
            torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            assert functional.linear(x, matrix).dtype == torch.float32

    def test_wrong_inputs_are_named(self, matrix: PhiTensor) -> None:
        with pytest.raises(ValueError, match=r"x: expected a last dimension of 192, got .*64"):
            functional.linear(torch.randn(3, 64), matrix)
        with pytest.raises(ValueError, match="x: expected bfloat16, float16 or float32, got"):
            functional.linear(torch.ones(3, 192).long(), matrix)
        with pytest.raises(ValueError, match=r"bias: expected torch.float32 of shape"):
            functional.linear(torch.ones(3, 192), matrix, torch.ones(3))
        with pytest.raises((ValueError, RuntimeError), match=r"expected|shapes|size"):
            _ = torch.ones(3, 192) @ matrix

    def test_devices_that_differ(self, matrix: PhiTensor) -> None:
        with pytest.raises(ValueError, match="x: is on cpu, but the weight is on meta"):
            functional.linear(torch.ones(3, 192), matrix.to("meta"))
        out = functional.linear(torch.ones(3, 192, device="meta"), matrix.to("meta"))
        assert (out.shape, out.device.type) == ((3, 16), "meta")

    def test_other_products_decode(self, matrix: PhiTensor) -> None:
        x, dense = torch.randn(5, 192), matrix.dequantize()
        out = torch.empty(5, 16)
        calls = [
            lambda w: torch.mm(x, w.T, out=out).clone(),
            lambda w: torch.addmm(torch.ones(16), x, w.T, beta=0.5, alpha=2),
            lambda w: torch.einsum("bi,oi->bo", x, w),
            lambda w: w @ w.T,
            lambda w: torch.bmm(x.expand(1, 5, 192), w.view(1, 16, 192).transpose(1, 2)),
        ]
        for call in calls:
            with pytest.warns(UserWarning, match="has no compressed form"):
                result = call(matrix)
            torch.testing.assert_close(result, call(dense))


class TestEmbedding:
    def test_rows_are_gathered_before_they_are_decoded(self, matrix: PhiTensor) -> None:
        indices = torch.tensor([[3, 0], [15, 3]])
        for dtype in DTYPES:
            table = matrix.to(dtype)
            rows = silently(lambda t=table: functional.embedding(indices, t, padding_idx=0))
            assert torch.equal(rows, table.dequantize()[indices])
        assert functional.embedding(torch.tensor(2), matrix).shape == (192,)
        assert functional.embedding(torch.empty(0, dtype=torch.int32), matrix).shape == (0, 192)

    def test_wrong_indices(self, matrix: PhiTensor) -> None:
        for bad in (16, -1):
            with pytest.raises(IndexError, match="out of range"):
                functional.embedding(torch.tensor([bad]), matrix)

    def test_max_norm_would_write(self, matrix: PhiTensor) -> None:
        with pytest.raises(RuntimeError, match=r"block\.weight: embedding with max_norm writes"):
            functional.embedding(torch.tensor([0]), matrix, max_norm=1.0)


VIEWS: dict[str, Callable[[Tensor], Any]] = {
    "t": lambda w: w.t(),
    "t.t": lambda w: w.t().t(),
    "rows": lambda w: w[3:11],
    "every other row": lambda w: w[1::2],
    "no rows": lambda w: w[4:4],
    "groups": lambda w: w[:, 64:],
    "one group": lambda w: w[:, 64:128],
    "rows of groups": lambda w: w[2:5, :128],
    "groups of the transpose": lambda w: w.t()[64:, 2:4],
    "narrow": lambda w: w.narrow(1, 128, 64),
    "view": lambda w: w.view(4, 4, 192),
    "view -1": lambda w: w.view(2, -1, 192),
    "view last -1": lambda w: w.view(16, -1),
    "a cut, then a view": lambda w: w[:, 64:].view(4, 4, 128),
    "reshape": lambda w: w.reshape(8, 2, 192),
    "an expert": lambda w: w.view(4, 4, 192)[2],
    "a row": lambda w: w[5],
    "the last row": lambda w: w[-1],
    "a row of an expert": lambda w: w.view(4, 4, 192)[2, 3],
    "experts' rows": lambda w: w.view(4, 4, 192)[:, 1],
    "transposed experts": lambda w: w.view(4, 4, 192).transpose(1, 2)[3, 64:],
    "chunk": lambda w: w.chunk(4)[1],
    "chunk of groups": lambda w: w.chunk(3, dim=1)[2],
    "split": lambda w: w.split([4, 12])[1],
    "uneven split": lambda w: w.split(7)[2],
    "split of the transpose": lambda w: w.t().split(64)[1],
    "detach": lambda w: w.detach(),
    "contiguous": lambda w: w.contiguous(),
}


class TestViews:
    @pytest.mark.parametrize("name", VIEWS)
    def test_they_stay_compressed(self, matrix: PhiTensor, name: str) -> None:
        view, dense = silently(lambda: VIEWS[name](matrix)), VIEWS[name](matrix.dequantize())
        assert isinstance(view, PhiTensor)
        assert (view.shape, view.dtype, view.fqn) == (dense.shape, dense.dtype, "block.weight")
        assert torch.equal(view.dequantize(), dense)
        assert f"shape={tuple(dense.shape)}" in repr(view)

    @pytest.mark.parametrize("name", ["t", "rows", "groups", "view", "an expert", "a row", "split"])
    def test_they_share_memory(self, matrix: PhiTensor, name: str) -> None:
        storage = VIEWS[name](matrix).index_plane.untyped_storage().data_ptr()
        assert storage == matrix.index_plane.untyped_storage().data_ptr()

    @pytest.mark.parametrize(
        "view",
        [
            lambda w: w.flatten(),
            lambda w: w.view(-1),
            lambda w: w.view(32, 96),
            lambda w: w.unsqueeze(0),
            lambda w: w.t().reshape(16, 192),
            lambda w: w.view(4, 4, 192).permute(2, 0, 1),
            lambda w: w.expand(2, 16, 192),
            lambda w: w.unbind()[3],
            lambda w: w[torch.arange(16) < 3],
            lambda w: w.split(50, dim=1)[1],
        ],
    )
    def test_others_decode(self, matrix: PhiTensor, view: Callable[[Tensor], Tensor]) -> None:
        with pytest.warns(
            UserWarning, match=r"has no compressed form, so block\.weight is decoded"
        ):
            result = view(matrix)
        assert type(result) is Tensor
        assert torch.equal(result, view(matrix.dequantize()))

    @pytest.mark.filterwarnings("ignore:.*has no compressed form")
    @pytest.mark.parametrize(
        "view",
        [
            lambda w: w.view(16, 191),
            lambda w: w.view(-1, 7),
            lambda w: w[16],
            lambda w: w.t()[:, 16].select(0, 192),
            lambda w: w.split([4, 4]),
            lambda w: w.split(0),
            lambda w: w.transpose(0, 2),
            lambda w: w.permute(0, 2),
            lambda w: w.permute(0, 0),
            lambda w: w.narrow(2, 0, 1),
        ],
    )
    def test_impossible_views_raise_what_torch_raises(
        self, matrix: PhiTensor, view: Callable[[Tensor], Tensor]
    ) -> None:
        with pytest.raises((RuntimeError, IndexError)) as theirs:
            view(matrix.dequantize())
        with pytest.raises(theirs.type):
            view(matrix)

    def test_a_row_of_every_transposed_matrix(self) -> None:
        weight = compressed(6, 4, 160, group_size=32)
        picked = weight.mT.select(-1, 2)
        assert isinstance(picked, PhiTensor)
        assert torch.equal(picked.dequantize(), weight.dequantize().mT.select(-1, 2))

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_any_chain_of_views(self, data: st.DataObject) -> None:
        ours, theirs = compressed(6, 4, 160, group_size=32), None
        theirs = ours.dequantize()
        for _ in range(data.draw(st.integers(1, 5))):
            step = data.draw(st.sampled_from(["slice", "swap", "select", "split"]))
            dim = data.draw(st.integers(-theirs.dim(), theirs.dim() - 1))
            extent = theirs.shape[dim]
            if step == "slice":
                start, stop = (data.draw(st.integers(0, extent)) for _ in range(2))
                cut = [slice(None)] * theirs.dim()
                cut[dim] = slice(start, max(start, stop), data.draw(st.integers(1, 2)))
                move = lambda t, cut=tuple(cut): t[cut]  # noqa: E731
            elif step == "swap":
                other = data.draw(st.integers(-theirs.dim(), theirs.dim() - 1))
                move = lambda t, a=dim, b=other: t.transpose(a, b)  # noqa: E731
            elif step == "select" and extent and theirs.dim() > 1:
                place = data.draw(st.integers(-extent, extent - 1))
                move = lambda t, d=dim, i=place: t.select(d, i)  # noqa: E731
            else:
                size = data.draw(st.integers(1, 64))
                move = lambda t, d=dim, s=size: t.split(s, d)[-1]  # noqa: E731
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ours, theirs = move(ours), move(theirs)
            assert ours.shape == theirs.shape
            decoded = ours.dequantize() if isinstance(ours, PhiTensor) else ours
            assert torch.equal(decoded, theirs)


PIERCED: dict[str, Callable[[Tensor], Any]] = {
    "from within a group": lambda w: w[:, 10:],
    "to within a group": lambda w: w[:, :70],
    "inside of a group": lambda w: w[:, 3:5],
    "every other": lambda w: w[:, ::2],
    "a column": lambda w: w[:, 3],
    "the last column": lambda w: w[:, -1],
    "none": lambda w: w[:, 9:9],
    "a tile": lambda w: w[2:5, 50:130],
    "a weight": lambda w: w[3, 77],
    "part of a row": lambda w: w[3][60:70],
    "rows of the transpose": lambda w: w.t()[7:9],
    "a row of the transpose": lambda w: w.t()[65],
    "columns of experts": lambda w: w.view(4, 4, -1)[1:3, :, 5:7],
    "narrow": lambda w: w.narrow(-1, 1, 3),
}


class TestPiercing:
    """What cuts through groups or blocks decodes those that it touches, and no more."""

    @pytest.mark.parametrize("name", PIERCED)
    @pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
    def test_values(self, exact: bool, name: str) -> None:
        tensor = compressed(16, 640, exact=exact)
        result = silently(lambda: PIERCED[name](tensor))
        assert type(result) is Tensor
        assert same_bits(result, PIERCED[name](tensor.dequantize()))

    @pytest.mark.parametrize(
        ("exact", "cut", "most"),
        [
            (False, lambda w: w[:, 10:20], 16 * 64),
            (False, lambda w: w[4:6, 60:70], 2 * 128),
            (False, lambda w: w[3, 77], 64),
            (True, lambda w: w[:, 10:20], 16 * 512),
            (True, lambda w: w[4:6, 600:601], 2 * 128),
            (True, lambda w: w[3, 77], 512),
            (True, lambda w: w.t()[5, 2:4], 16 * 512),
        ],
    )
    def test_no_more_is_decoded_than_holds_it(
        self, exact: bool, cut: Any, most: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tensor, decode, sizes = compressed(16, 640, exact=exact), torch.ops.phiquant.decode, []

        def counting(*arguments: Any) -> Tensor:
            weight = decode(*arguments)
            sizes.append(weight.numel())
            return weight

        monkeypatch.setattr(torch.ops.phiquant, "decode", counting)
        cut(tensor)
        assert sizes == [most]

    def test_a_column_out_of_range_is_named(self, matrix: PhiTensor) -> None:
        for place in (192, -193):
            with pytest.raises(
                IndexError, match=rf"^block\.weight: column {place} is out of range"
            ):
                matrix.select(1, place)


EXACT_VIEWS: dict[str, Callable[[Tensor], Any]] = {
    "rows": lambda w: w[3:11],
    "a row": lambda w: w[5],
    "every third row": lambda w: w[1::3],
    "no rows": lambda w: w[4:4],
    "all rows": lambda w: w[:],
    "the first block": lambda w: w[:, :512],
    "a block to the end": lambda w: w[:, 512:],
    "rows of blocks": lambda w: w[2:5, 512:1024],
    "blocks of rows": lambda w: w[:, 512:][2:5],
    "rows of rows": lambda w: w[2:9][1:4],
    "rows of every other row": lambda w: w[::2][2:4],
    "a row of every other": lambda w: w[1::2][3],
    "blocks of blocks": lambda w: w[:, 512:][:, 512:],
    "the transpose": lambda w: w.t(),
    "blocks of the transpose": lambda w: w.t()[512:, 2:9],
    "experts": lambda w: w.view(3, 4, -1),
    "an expert": lambda w: w.view(3, 4, -1)[1],
    "rows of experts": lambda w: w.view(3, 4, -1)[:, 1:3],
    "a row of every expert": lambda w: w.view(3, 4, -1)[:, 2],
    "experts' blocks, transposed": lambda w: w.view(3, 4, -1).mT[1:, :512, 1:3],
    "chunk": lambda w: w.chunk(3)[1],
    "split": lambda w: w.split([5, 7])[1],
    "split of blocks": lambda w: w.split(512, dim=1)[2],
    "clone of rows": lambda w: w[3:5].clone(),
    "detach": lambda w: w.detach(),
}


class TestExactViews:
    """The same views of weights that come back bit for bit, with NaNs in them."""

    @pytest.fixture
    def weights(self) -> dict[str, Tensor]:
        """Rows that end within a block, and at its border."""
        return {
            str(columns): with_specials(weight(12, columns, dtype=torch.bfloat16))
            for columns in (1100, 1536)
        }

    @pytest.mark.parametrize("columns", ["1100", "1536"])
    @pytest.mark.parametrize("name", EXACT_VIEWS)
    def test_they_stay_exact(self, weights: Any, name: str, columns: str) -> None:
        original = weights[columns]
        tensor = PhiTensor.from_hp(original, PhiConfig(exact=True))
        view = silently(lambda: EXACT_VIEWS[name](tensor))
        expected = EXACT_VIEWS[name](original)
        assert isinstance(view, PhiTensor)
        assert view.shape == expected.shape
        assert same_bits(view.dequantize(), expected)
        assert view.is_exact
        lossy = EXACT_VIEWS[name](tensor.at(4))
        assert same_bits(view.at(4).dequantize(), lossy.dequantize())

    @pytest.mark.parametrize("name", ["rows", "a row", "rows of rows", "an expert", "chunk"])
    def test_what_rows_take_is_counted_truly(self, name: str) -> None:
        tensor = compressed(12, 1536, dtype=torch.bfloat16, exact=True)
        rows = EXACT_VIEWS[name](tensor)
        alone = PhiTensor.from_hp(rows.dequantize().view(-1, 1536), PhiConfig(exact=True))
        few = 8 * 32  # starts of its own, and a checksum that the slice does not have
        assert abs(rows.stored_bytes - alone.stored_bytes) <= few
        assert rows.remainder_plane.data_ptr() >= tensor.remainder_plane.data_ptr()
        assert rows.checksum_plane is None

    def test_what_other_cuts_do_not_reach_is_left_out(self) -> None:
        tensor = compressed(12, 1536, dtype=torch.bfloat16, exact=True)
        whole = tensor.remainder_plane.numel()
        assert tensor[2:10:3].remainder_plane.numel() < 0.65 * whole
        assert tensor[4:6, 512:1024].remainder_plane.numel() < 0.2 * whole
        assert tensor[4][512:1024].remainder_plane.numel() < 0.04 * whole

    def test_slices_are_equal_to_what_they_hold(self, weights: Any) -> None:
        tensor = PhiTensor.from_hp(weights["1536"], PhiConfig(exact=True))
        assert torch.equal(tensor[2:9][1:4], tensor[3:6])
        assert torch.equal(tensor[::2][1:2], tensor[2:3])
        assert not torch.equal(tensor[2:4], tensor[3:5])
        assert not torch.equal(tensor, tensor.at(4))
        assert not torch.equal(tensor.at(4), tensor)

    @pytest.mark.parametrize("columns", ["1100", "1536"])
    def test_rows_by_number(self, weights: Any, columns: str) -> None:
        original = weights[columns]
        tensor = PhiTensor.from_hp(original, PhiConfig(exact=True))
        rows = torch.tensor([[0, 11], [-3, 0]])
        assert same_bits(silently(lambda: tensor[rows]), original[rows])
        assert same_bits(silently(lambda: tensor.index_select(0, rows[0])), original[rows[0]])
        looked_up = functional.embedding(rows.abs(), tensor)
        assert same_bits(looked_up, functional.embedding(rows.abs(), original))

    def test_products_are_those_of_the_original(self) -> None:
        original = weight(12, 600)
        tensor = PhiTensor.from_hp(original, PhiConfig(exact=True))
        for of, dense in ((tensor, original), (tensor[3:7], original[3:7])):
            x, y = (torch.ones(2, 600, requires_grad=True) for _ in range(2))
            ours, theirs = functional.linear(x, of), functional.linear(y, dense)
            torch.testing.assert_close(ours, theirs)
            ours.square().sum().backward()
            theirs.square().sum().backward()
            torch.testing.assert_close(x.grad, y.grad)

    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_any_chain_of_views(self, data: st.DataObject) -> None:
        theirs = EXACT_CHAIN.dequantize()
        ours: Tensor = EXACT_CHAIN
        for _ in range(data.draw(st.integers(1, 4))):
            dim = data.draw(st.integers(0, theirs.dim() - 1))
            extent = theirs.shape[dim]
            if data.draw(st.booleans()) and extent and theirs.dim() > 1:
                place = data.draw(st.integers(-extent, extent - 1))
                ours, theirs = ours.select(dim, place), theirs.select(dim, place)
                continue
            borders = st.sampled_from([0, 1, 2, 3, 511, 512, 600, 1024, extent])
            start, stop = sorted(min(data.draw(borders), extent) for _ in range(2))
            cut = [slice(None)] * theirs.dim()
            cut[dim] = slice(start, stop, data.draw(st.integers(1, 2)))
            ours, theirs = ours[tuple(cut)], theirs[tuple(cut)]
        assert ours.shape == theirs.shape
        assert same_bits(ours.dequantize() if isinstance(ours, PhiTensor) else ours, theirs)


EXACT_CHAIN = PhiTensor.from_hp(
    with_specials(weight(3, 4, 1100, dtype=torch.bfloat16)), PhiConfig(exact=True)
)


def test_broken_planes_are_told_with_the_name_of_the_weight() -> None:
    tensor = compressed(4, 600, exact=True)
    tensor.fqn = "block.weight"
    tensor.start_plane[0] = 1 << 40
    x, rows = torch.ones(2, 600), torch.tensor([1])
    for read in (
        lambda: tensor.dequantize(),
        lambda: functional.linear(x, tensor),
        lambda: functional.embedding(rows, tensor),
        lambda: tensor[1:3].dequantize(),
        lambda: tensor[1:3, 3:5],
    ):
        with pytest.raises(ValueError, match=r"^block\.weight: remainder: block \d"):
            read()
    tensor = compressed(4, 600)
    tensor.fqn = "block.weight"
    tensor.scale_plane.zero_()
    with pytest.raises(ValueError, match=r"^block\.weight: scale: "):
        functional.linear(x, tensor)
    tensor.index_plane = tensor.index_plane[:, :-1]
    with pytest.raises(ValueError, match=r"^block\.weight: index: expected"):
        tensor.dequantize()


class TestCopies:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_another_dtype_changes_only_what_it_decodes_to(
        self, matrix: PhiTensor, dtype: torch.dtype
    ) -> None:
        changed = matrix.to(dtype)
        assert isinstance(changed, PhiTensor)
        assert (changed.dtype, changed.stored_dtype) == (dtype, torch.float32)
        assert torch.equal(changed.dequantize(), matrix.dequantize().to(dtype))
        assert torch.equal(changed.float(), matrix)
        assert torch.equal(matrix.t().to(dtype).dequantize(), changed.dequantize().t())

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.complex64])
    def test_dtypes_it_cannot_decode_to(self, matrix: PhiTensor, dtype: torch.dtype) -> None:
        with pytest.raises(TypeError, match=rf"^block\.weight: .*decodes to bfloat16.*got {dtype}"):
            matrix.to(dtype)

    def test_models_move(self) -> None:
        model = nn.Sequential(nn.Linear(128, 16))
        phiquant.quantize_(model)
        kept = model[0].weight.dequantize()
        x = torch.randn(3, 128)
        for dtype, move in ((torch.float16, model.half), (torch.bfloat16, model.bfloat16)):
            move()
            assert model[0].weight.dtype == dtype
            assert isinstance(model[0].weight, PhiTensor)
            assert model[0].weight.fqn == "0.weight"
            assert model(x.to(dtype)).dtype == dtype
        assert torch.equal(model.float()[0].weight.dequantize(), kept)
        assert model.to("cpu").cpu()[0].weight.cpu() is model[0].weight
        with pytest.raises(TypeError, match=r"^0\.weight: a compressed weight decodes to"):
            model.double()
        assert model.to("meta")[0].weight.device.type == "meta"
        assert model(x.to("meta")).shape == (3, 16)
        roomy = model.to_empty(device="cpu")[0].weight
        assert isinstance(roomy, PhiTensor)
        assert roomy.device.type == "cpu"

    def test_a_clone_has_its_own_memory(self, matrix: PhiTensor) -> None:
        clone = matrix.clone()
        assert torch.equal(clone, matrix)
        clone.index_plane.zero_()
        assert not torch.equal(clone, matrix)

    def test_equal_compares_planes_and_what_reads_them(self, matrix: PhiTensor) -> None:
        assert torch.equal(matrix, matrix.clone())
        assert torch.equal(matrix, matrix.dequantize())
        assert torch.equal(matrix.dequantize(), matrix)
        for other in (
            matrix.at(0),
            matrix.t(),
            matrix[:8],
            matrix._with(exponent=-9),
            compressed(16, 192, group_size=32),
            PhiTensor.from_hp(weight(16, 192, seed=1)),
            torch.zeros(16, 192),
        ):
            assert not torch.equal(matrix, other)

    def test_a_plain_tensor_takes_decoded_values(self, matrix: PhiTensor) -> None:
        plain = torch.zeros(16, 192)
        assert torch.equal(plain.copy_(matrix), matrix.dequantize())
        plain = torch.zeros(20, 192, dtype=torch.bfloat16)
        plain[:16] = matrix
        assert torch.equal(plain[:16], matrix.dequantize().bfloat16())

    @pytest.mark.parametrize(
        ("source", "why"),
        [
            (lambda: weight(16, 192), "is a plain torch.float32 tensor"),
            (lambda: compressed(16, 128), r"has shape \(16, 128\) instead of \(16, 192\)"),
            (lambda: compressed(16, 192, index_bits=5), "has index_bits 5 instead of 4"),
            (lambda: compressed(16, 192, deviation_bits=8), "has deviation_bits 8 instead of 4"),
            (lambda: compressed(16, 192, grid="golden"), "has grid 'golden' instead of 'phi'"),
        ],
    )
    def test_what_cannot_be_copied_into_it(
        self, matrix: PhiTensor, source: Callable[[], Tensor], why: str
    ) -> None:
        kept = matrix.clone()
        with pytest.raises(ValueError, match=rf"^block\.weight: cannot be overwritten, .*{why}"):
            matrix.copy_(source())
        assert torch.equal(matrix, kept)

    def test_planes_of_another_exponent_leave_aliases_right(self, matrix: PhiTensor) -> None:
        alias, kept = matrix.detach(), matrix.dequantize()
        huge = PhiTensor.from_hp(weight(16, 192, seed=1) * 1e6)
        assert huge.exponent != matrix.exponent
        matrix.copy_(huge)
        assert torch.equal(matrix, huge)
        assert torch.equal(alias.dequantize(), kept)

    def test_an_exact_weight_takes_a_remainder_of_another_size(self) -> None:
        tensor, other = compressed(8, 600, exact=True), weight(8, 600, seed=1, dtype=torch.float16)
        alias, kept = tensor.detach(), tensor.dequantize()
        source = PhiTensor.from_hp(with_specials(other), PhiConfig(exact=True))
        tensor.copy_(source)
        assert torch.equal(tensor, source)
        assert (tensor.dtype, tensor.stored_dtype) == (torch.float32, torch.float16)
        assert tensor.verify()
        assert same_bits(alias.dequantize(), kept)
        same = source.clone()
        pointer = same.remainder_plane.data_ptr()
        same.copy_(source)
        assert same.remainder_plane.data_ptr() == pointer

    def test_an_exact_weight_and_a_lossy_one_do_not_mix(self) -> None:
        exact, lossy = compressed(8, 600, exact=True), compressed(8, 600)
        with pytest.raises(ValueError, match="because the source has no remainder; load a plain"):
            exact.copy_(lossy)
        with pytest.raises(ValueError, match="the source has a remainder, and this has none"):
            lossy.copy_(exact)

    def test_a_slice_of_an_exact_weight_cannot_be_overwritten(self) -> None:
        tensor = compressed(8, 600, exact=True)
        tensor.fqn = "block.weight"
        with pytest.raises(RuntimeError, match=r"^block\.weight: a copy into a slice of an exact"):
            tensor[2:4].copy_(compressed(8, 600, exact=True, fit="index")[4:6])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_an_exact_weight_of_another_dtype_keeps_its_bits(self, dtype: torch.dtype) -> None:
        original = weight(4, 600, dtype=torch.bfloat16)
        tensor = PhiTensor.from_hp(original, PhiConfig(exact=True))
        changed = tensor.to(dtype)
        assert changed.stored_dtype == torch.bfloat16
        assert same_bits(changed.dequantize(), original.to(dtype))
        assert changed.verify()
        assert same_bits(changed.bfloat16().dequantize(), original)

    def test_room_for_an_exact_weight(self) -> None:
        tensor = compressed(4, 600, exact=True)
        room = torch.empty_like(tensor.to("meta"), device="cpu")
        assert room.is_exact
        assert room.copy_(tensor).verify()

    def test_new_tensors_of_its_kind_are_plain(self, matrix: PhiTensor) -> None:
        def make() -> list[Tensor]:
            return [
                torch.zeros_like(matrix),
                torch.ones_like(matrix, dtype=torch.int8),
                torch.full_like(matrix, 2.0),
                torch.randn_like(matrix.t()),
                matrix.new_zeros(3),
                matrix.new_full((2, 2), 7.0),
            ]

        made = silently(make)
        assert all(type(t) is Tensor for t in made)
        assert [tuple(t.shape) for t in made] == [(16, 192)] * 3 + [(192, 16), (3,), (2, 2)]
        assert made[1].dtype == torch.int8
        assert made[0].is_contiguous()
        assert torch.equal(made[2], torch.full((16, 192), 2.0))

    def test_values_for_python(self, matrix: PhiTensor) -> None:
        dense = matrix.dequantize()
        assert matrix.tolist() == dense.tolist()
        assert (matrix.numpy() == dense.numpy()).all()
        assert matrix[3, 5].item() == dense[3, 5].item()
        assert len(matrix) == 16


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "zero_": lambda w: w.zero_(),
    "iadd": lambda w: w.__iadd__(1),
    "data": lambda w: w.data.mul_(2),
    "init": lambda w: nn.init.normal_(w),
    "element": lambda w: w.__setitem__((0, 0), 1.0),
    "row": lambda w: w.__setitem__(0, torch.zeros(192)),
    "element of a row": lambda w: w[0].__setitem__(0, 1.0),
    "through a row": lambda w: w[0].zero_(),
    "through rows": lambda w: w[2:4].fill_(1),
    "through a transpose": lambda w: w.t().mul_(2),
    "copy into a row": lambda w: w.data[-1].copy_(torch.zeros(192)),
    "out": lambda w: torch.add(torch.ones(16, 192), 1, out=w),
    "foreach": lambda w: torch._foreach_mul_([w], 2.0),
    "masked": lambda w: w.masked_fill_(torch.ones(16, 192).bool(), 0),
    "index_add": lambda w: w.index_add_(0, torch.tensor([0]), torch.ones(1, 192)),
    "resize": lambda w: w.resize_(3, 3),
    "data assignment": lambda w: setattr(w, "data", torch.zeros(16, 192)),
    "data assignment of its kind": lambda w: setattr(w, "data", w.clone()),
}


@pytest.mark.parametrize("name", WRITES)
def test_no_write_is_lost(matrix: PhiTensor, name: str) -> None:
    kept = matrix.clone()
    with pytest.raises((RuntimeError, ValueError), match=r"^block\.weight: "):
        WRITES[name](matrix)
    assert torch.equal(matrix, kept)


class TestFallback:
    def test_one_warning_for_each_operation_and_parameter(self, matrix: PhiTensor) -> None:
        other = compressed(16, 192)
        other.fqn = "other.weight"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                matrix.sum()
                torch.cat([matrix, other])
        assert sorted(str(w.message).split(" is decoded")[0] for w in caught) == [
            "phiquant: aten.cat.default has no compressed form, so block.weight",
            "phiquant: aten.cat.default has no compressed form, so other.weight",
            "phiquant: aten.sum.default has no compressed form, so block.weight",
        ]
        assert all("filter_fn" in str(w.message) for w in caught)
        assert {w.category for w in caught} == {UserWarning}

    def test_a_row_is_no_matter_of_warning(self, matrix: PhiTensor) -> None:
        row = silently(lambda: matrix[3] * 2)
        assert torch.equal(row, matrix.dequantize()[3] * 2)

    @pytest.mark.parametrize(
        "call",
        [
            lambda w: w * 2,
            lambda w: 1 / (w + 10),
            lambda w: w.abs().amax(-1),
            lambda w: w.norm(),
            lambda w: torch.stack([w, w]),
            lambda w: w == w,
            lambda w: torch.linalg.svdvals(w),
            lambda w: functional.softmax(w, dim=-1),
            lambda w: functional.linear(torch.ones(2, 16), w.t()),
            lambda w: functional.linear(w, torch.ones(4, 192)),
            lambda w: functional.embedding_bag(torch.tensor([[1, 2]]), w),
            lambda w: torch.where(w > 0, w, 0),
            lambda w: nn.utils.parameters_to_vector([w]),
        ],
    )
    def test_the_answer_is_that_of_the_decoded_weight(
        self, matrix: PhiTensor, call: Callable[[Tensor], Tensor]
    ) -> None:
        with pytest.warns(UserWarning, match="has no compressed form"):
            result = call(matrix)
        torch.testing.assert_close(result, call(matrix.dequantize()))
        assert type(result) is Tensor


class TestStateDicts:
    @pytest.fixture
    def pair(self) -> tuple[nn.Module, nn.Module]:
        """Two models of equal layout but different values, one of them with a far exponent."""
        models = tuple(nn.Sequential(nn.Linear(128, 16)) for _ in range(2))
        models[0][0].weight.data.mul_(1e6)
        for model in models:
            phiquant.quantize_(model)
        return models

    @pytest.mark.parametrize("assign", [False, True])
    def test_between_equally_compressed_models(self, pair: Any, assign: bool) -> None:
        source, target = pair
        target.load_state_dict(source.state_dict(), strict=True, assign=assign)
        assert torch.equal(target[0].weight, source[0].weight)
        assert isinstance(target[0].weight, nn.Parameter)
        x = torch.randn(3, 128)
        assert torch.equal(target(x), source(x))

    def test_of_different_dtypes(self) -> None:
        source, target = nn.Linear(128, 16).bfloat16(), nn.Linear(128, 16)
        for model in (source, target):
            phiquant.quantize_(model)
        target.load_state_dict(source.state_dict())
        assert target.weight.dtype == torch.float32
        assert torch.equal(target.weight.dequantize().bfloat16(), source.weight.dequantize())

    def test_a_plain_checkpoint_does_not_fit(self, pair: Any) -> None:
        with pytest.raises(RuntimeError, match=r"load a plain checkpoint before compressing"):
            pair[1].load_state_dict(nn.Sequential(nn.Linear(128, 16)).state_dict())

    def test_a_compressed_checkpoint_decodes_into_a_plain_model(self, pair: Any) -> None:
        plain = nn.Sequential(nn.Linear(128, 16))
        plain.load_state_dict(pair[0].state_dict())
        assert torch.equal(plain[0].weight, pair[0][0].weight.dequantize())

    def test_assigning_into_a_plain_model(self, pair: Any) -> None:
        with torch.device("meta"):
            plain = nn.Sequential(nn.Linear(128, 16))
        with pytest.raises(RuntimeError, match=r"model\.requires_grad_\(False\) first"):
            plain.load_state_dict(pair[0].state_dict(), assign=True)
        plain.requires_grad_(False).load_state_dict(pair[0].state_dict(), assign=True)
        x = torch.randn(3, 128)
        assert torch.equal(plain(x), pair[0](x))

    def test_a_functional_call_takes_it(self, pair: Any) -> None:
        x = torch.randn(3, 128)
        plain = nn.Sequential(nn.Linear(128, 16))
        called = torch.func.functional_call(plain, pair[0].state_dict(), (x,))
        assert torch.equal(called, pair[0](x))

    def test_different_configurations_do_not_fit(self, pair: Any) -> None:
        other = nn.Sequential(nn.Linear(128, 16))
        phiquant.quantize_(other, PhiConfig(index_bits=5))
        with pytest.raises(RuntimeError, match="has index_bits 5 instead of 4"):
            pair[0].load_state_dict(other.state_dict())


class TestModes:
    """Gradient modes, tracers and transforms around a product."""

    @pytest.mark.skipif(not ops.compiled, reason="the reference kernels do build layouts")
    def test_a_call_does_little_in_python(
        self, matrix: PhiTensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Small layers would feel it: no layout is built, and few functions are called."""

        def refuse(self: Layout) -> None:
            raise AssertionError("a layout was built")

        monkeypatch.setattr(Layout, "__post_init__", refuse)
        x, calls = torch.ones(1, 192), []
        with torch.no_grad():
            sys.setprofile(lambda frame, event, _: calls.append(event))
            functional.linear(x, matrix)
            sys.setprofile(None)
        assert calls.count("call") < 16

    def test_without_gradients_there_are_none(self, matrix: PhiTensor) -> None:
        x = torch.ones(2, 192, requires_grad=True)
        with torch.no_grad():
            result = functional.linear(x, matrix)
            with torch.enable_grad():
                inner = functional.linear(x, matrix)
        assert not result.requires_grad
        assert not result.is_inference()
        assert inner.requires_grad
        with torch.inference_mode():
            assert functional.linear(x, matrix).is_inference()

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
    def test_tracers_record_the_op(self, matrix: PhiTensor, mode: Callable[[], Any]) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        x = torch.randn(2, 192)
        with mode():
            graph = make_fx(lambda x: functional.linear(x, matrix))(x)
            assert torch.equal(graph(x), functional.linear(x, matrix))
        assert torch.ops.phiquant.linear.default in [node.target for node in graph.graph.nodes]

    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
    def test_vmap(self, matrix: PhiTensor, mode: Callable[[], Any]) -> None:
        x = torch.randn(3, 2, 192)
        with mode():
            mapped = torch.vmap(lambda row: functional.linear(row, matrix))(x)
        torch.testing.assert_close(mapped, functional.linear(x, matrix))


@pytest.mark.parametrize("rows", [[2, 0, 2], [-1, 3], [[1], [-2]], []], ids=str)
def test_rows_by_number_decode_those_rows_only(rows: list[int]) -> None:
    weight = PhiTensor.from_hp(torch.randn(8, 100, generator=torch.Generator().manual_seed(0)))
    numbers = torch.tensor(rows, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(weight[numbers], weight.dequantize()[numbers])


def test_a_row_number_out_of_range_is_an_error() -> None:
    with pytest.raises((IndexError, ValueError, RuntimeError), match=r"indices|index out of range"):
        PhiTensor.from_hp(torch.ones(8, 100))[torch.tensor([-9])]


@pytest.mark.parametrize("exact", [False, True], ids=["lossy", "exact"])
@pytest.mark.parametrize(
    "view",
    [
        lambda w: w[3:5],
        lambda w: w[3],
        lambda w: w[:, 3:70],
        lambda w: w[5:9, 7],
        lambda w: w.t(),
        lambda w: w.view(4, 16, 128),
        lambda w: w.detach(),
    ],
    ids=["rows", "row", "columns", "column", "transpose", "view", "detach"],
)
def test_views_work_in_inference_mode(view: Callable[[Tensor], Tensor], exact: bool) -> None:
    of = compressed(64, 128, dtype=torch.bfloat16, exact=exact)
    expected = view(of.dequantize())
    with torch.inference_mode():
        assert torch.equal(view(of).clone(), expected)
