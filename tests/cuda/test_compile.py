"""Compiled models on a GPU: no graph break, CUDA graphs, streams, autocast, static caches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.library import opcheck

import phiquant
from phiquant import PhiConfig, PhiTensor, early_kernels, graph_ops
from tests.cuda.support import ON_A_GPU, phi
from tests.support import TiedModel

pytestmark = [
    *ON_A_GPU,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
CONFIGS = (PhiConfig(deviation_bits=0), PhiConfig(), PhiConfig(exact=True))
EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS, ids=["index", "index+4", "exact"])


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model_of(config: PhiConfig) -> nn.Module:
    model = TiedModel().eval().bfloat16().cuda()
    phiquant.quantize_(model, config)
    return model


@EVERY_CONFIG
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@torch.inference_mode()
def test_compiled_equals_eager(mode: str | None, config: PhiConfig) -> None:
    model = model_of(config)
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for _ in range(4):  # graphs are recorded at the second call and replayed after it
        batch = torch.randint(0, 100, (1, 6), device="cuda")
        torch.testing.assert_close(compiled(batch), model(batch), atol=2e-2, rtol=2e-2)


@EVERY_CONFIG
@torch.inference_mode()
def test_weights_stay_where_they_are(config: PhiConfig) -> None:
    """A graph of torch's own copies its inputs, unless they are known not to move."""
    model = model_of(config)
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    batch = torch.randint(0, 100, (1, 6), device="cuda")
    for _ in range(3):
        compiled(batch)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        compiled(batch)
        torch.cuda.synchronize()
    names = [event.name for event in trace.events()]
    assert sum("Memcpy DtoD" in name for name in names) <= 1  # of the indices


@EVERY_CONFIG
@torch.inference_mode()
def test_a_whole_model_in_one_graph(config: PhiConfig) -> None:
    model, batch = model_of(config), torch.randint(0, 100, (1, 6), device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        model(batch)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = model(batch)
    for _ in range(2):
        batch.random_(0, 100)
        graph.replay()
        assert torch.equal(found, model(batch))


@EVERY_CONFIG
@torch.inference_mode()
def test_on_another_stream(config: PhiConfig) -> None:
    model, batch = model_of(config), torch.randint(0, 100, (1, 6), device="cuda")
    wanted, side = model(batch), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        later = batch + 0
        found = model(later)
    side.synchronize()
    assert torch.equal(found, wanted)


@EVERY_CONFIG
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@torch.no_grad()
def test_autocast(compiled: bool, config: PhiConfig) -> None:
    """As torch's own layer: compiled, torch 2.11 keeps to the first dtype even for that one."""
    layer = nn.Linear(128, 64).cuda()
    own, x = copy.deepcopy(layer), torch.randn(3, 128, device="cuda")
    phiquant.quantize_(layer, config)
    plain = layer(x)
    run, run_own = (torch.compile(m, fullgraph=True) if compiled else m for m in (layer, own))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype):
            y, wanted = run(x), run_own(x).dtype
        assert y.dtype == wanted
        assert compiled or wanted == dtype
        torch.testing.assert_close(y.float(), plain, atol=3e-2, rtol=3e-2)


@EVERY_CONFIG
def test_the_op_of_a_graph(config: PhiConfig) -> None:
    of = torch.randn(48, 200).bfloat16()
    weight = PhiTensor.from_hp(of, config).cuda()
    columns, *layout = weight.op_arguments
    for shape in ((200,), (3, 200), (2, 1, 200), (0, 200)):
        x = torch.randn(shape, device="cuda").bfloat16()
        for bias in (None, torch.randn(48, device="cuda").bfloat16()):
            wanted = phi.linear(x, *weight.planes, bias, *weight.op_arguments)
            for int8 in (False, True):
                code = graph_ops.pack(*layout, int8)
                assert torch.equal(phi._linear(x, *weight.planes, bias, columns, code), wanted)
    opcheck(phi._linear.default, (x, *weight.planes, None, columns, code))
    with pytest.raises(ValueError, match="layout: expected a number of 28 bits"):
        phi._linear(x, *weight.planes, None, columns, -1)


class Heads(nn.Module):
    """Queries, keys and values."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(128, rows, bias=bias) for rows in (64, 32, 32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(x), self.v(x)


@EVERY_CONFIG
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@torch.inference_mode()
def test_products_of_one_input_are_one_call(bias: bool, rows: int, config: PhiConfig) -> None:
    module = Heads(bias).bfloat16().cuda()
    phiquant.quantize_(module, config)
    x = torch.randn(1, rows, 128, device="cuda").bfloat16()
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    found, code = run_and_get_code(compiled, x)
    assert "phiquant._linears.default(" in "".join(code)
    assert "phiquant._linear.default(" not in "".join(code)
    torch.testing.assert_close(found, module(x), atol=2e-2, rtol=2e-2)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = compiled(x)
    for _ in range(2):
        x.normal_()
        graph.replay()
        torch.testing.assert_close(found, module(x), atol=2e-2, rtol=2e-2)


@EVERY_CONFIG
@pytest.mark.parametrize("rows", [1, 8])
@torch.inference_mode()
def test_small_kernels_wait_first_and_let_products_begin(rows: int, config: PhiConfig) -> None:
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs compute capability 9.0")
    heads, norm = Heads(False).bfloat16().cuda(), nn.RMSNorm(128).bfloat16().cuda()
    phiquant.quantize_(heads, config)

    def step(x: Tensor) -> Tensor:
        for _ in range(3):
            q, k, v = heads(norm(x))
            x = x + q.sigmoid().repeat(1, 1, 2) * torch.cat([k, v, q.sin()], -1)
        return x

    compiled = torch.compile(step, fullgraph=True, dynamic=False, options=early_kernels.options())
    x = torch.randn(1, rows, 128, device="cuda").bfloat16()
    with early_kernels.early_kernels():
        _, sources = run_and_get_code(compiled, x)
    kernels = "".join(sources).split("@triton.jit")[1:]
    first = "    tl.extra.cuda.gdc_launch_dependents()\n    tl.extra.cuda.gdc_wait()\n"
    assert kernels
    assert all(first in code and code.index(first) < code.index("tl.load(") for code in kernels)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = compiled(x)
    for _ in range(20):
        x.normal_()
        graph.replay()
        torch.testing.assert_close(found, step(x), atol=3e-2, rtol=3e-2)


def llama(config: PhiConfig | None) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(shape).bfloat16().eval().cuda()
    if config is not None:
        phiquant.quantize_(model, config)
    return model


def steps(model: Any, run: Any, tokens: Tensor) -> Tensor:
    """Logits of one token after the other, with a cache of fixed size."""
    from transformers import StaticCache

    cache, found = StaticCache(config=model.config, max_cache_len=32), []
    model(input_ids=tokens[:, :4], past_key_values=cache, use_cache=True)
    for place in range(4, tokens.shape[1]):
        torch.compiler.cudagraph_mark_step_begin()
        position = torch.full((1, 1), place, device="cuda")
        here = tokens[:, place : place + 1].contiguous()
        output = run(input_ids=here, position_ids=position, past_key_values=cache, use_cache=True)
        found.append(output.logits[0, -1].float())
    return torch.stack(found)


@pytest.mark.slow
@EVERY_CONFIG
@torch.inference_mode()
def test_decoding_with_a_static_cache(config: PhiConfig) -> None:
    model, tokens = llama(config), torch.randint(0, 256, (1, 12), device="cuda")
    wanted = steps(model, model, tokens)
    compiled = torch.compile(model.forward, fullgraph=True, mode="reduce-overhead")
    found = steps(model, compiled, tokens)
    assert ((found - wanted).norm() / wanted.norm()).item() < 0.03


@pytest.mark.slow
@torch.inference_mode()
def test_generate_compiles_with_a_static_cache() -> None:
    """transformers compiles the step of one token by itself where the cache is static."""
    model, prompt = llama(PhiConfig()), torch.randint(0, 256, (1, 5), device="cuda")
    given = {"max_new_tokens": 10, "do_sample": False, "return_dict_in_generate": True}
    eager = model.generate(prompt, output_logits=True, **given)
    static = model.generate(prompt, output_logits=True, cache_implementation="static", **given)
    first = [torch.stack(made.logits).float() for made in (eager, static)]
    # As long as tokens agree, and they do at least at first, logits have to.
    agree = int((eager.sequences == static.sequences)[0, 5:].long().cumprod(0).sum())
    assert agree >= 3
    error = (first[0][:agree] - first[1][:agree]).norm() / first[0][:agree].norm()
    assert error.item() < 0.03
