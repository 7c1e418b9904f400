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
from tests.support import DTYPES, compressed, weight


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
            lambda w: w[:, 10:],
            lambda w: w[:, ::2],
            lambda w: w[:, 3],
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
    with pytest.raises((IndexError, ValueError, RuntimeError), match="indices"):
        PhiTensor.from_hp(torch.ones(8, 100))[torch.tensor([-9])]
