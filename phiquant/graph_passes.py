"""What Inductor does with products of a compiled graph: those of the same input become one call.

To begin and to wait for all threads is a good part of a small product's time: queries, keys and
values, or the two halves of a gated layer, share one beginning and one end. This module needs
Inductor: it is imported only when a product is traced on a device whose kernels gain by it, by
:mod:`phiquant.graph_ops`, which registers it.
"""

from __future__ import annotations

import functools
import math
import operator
import warnings
import weakref
from collections.abc import Collection
from typing import Any

import torch
from torch._guards import TracingContext
from torch._inductor import config, custom_graph_pass
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

from phiquant import early_kernels, graph_ops
from phiquant.ops import COUNT

MOST = 3  # products of one call
ROWS = 16  # of x: more have enough to do in a call of their own
EXACT = frozenset({"cuda"})  # where exact weights' are joined: a CPU decodes one after the other
EARLY = frozenset({"cuda"})  # where kernels may begin before those ahead of them have ended
_TAKES_LISTS = hasattr(custom_graph_pass, "get_custom_graph_passes")

_product = torch.ops.phiquant._linear.default
_products = torch.ops.phiquant._linears.default
_placed: weakref.WeakSet[TracingContext] = weakref.WeakSet()  # traces that have seen the pass


class JoinProducts(CustomGraphPass):
    """Inductor's pass: products with the same input become one call, up to three at a time.

    It is in use by itself. Who has a pass of their own in
    ``torch._inductor.config.post_grad_custom_pre_pass`` may derive it from this one and begin with
    ``super().__call__(graph)``; their ``uuid`` has to be another then.

    Args:
        devices: types of devices whose products are joined; by default those whose kernels gain.
    """

    def __init__(self, devices: Collection[str] | None = None) -> None:
        self.devices = frozenset(graph_ops.DEVICES if devices is None else devices)

    def __call__(self, graph: Graph) -> None:
        join_products(graph, self.devices)

    def uuid(self) -> Any:
        """Of what decides how a graph is changed: graphs in Inductor's cache are found by it."""
        files = (__file__, graph_ops.__file__, early_kernels.__file__)
        return get_hash_for_files(files, ",".join(sorted(self.devices)))


def register() -> None:
    """Have Inductor join products from now on, also in the compile that is under way.

    Dynamo traces before keys of caches are made and before options of torch.compile hold. A pass
    that is there then stays, where torch takes several. One that takes this one's place later comes
    from such options, which hold to the end: nothing can be added, and None is what they ask for.
    """
    passes, trace = config.post_grad_custom_pre_pass, TracingContext.get()
    present = passes if isinstance(passes, list | tuple) else [passes] if passes else []
    if any(isinstance(one, JoinProducts) for one in present):
        _placed.add(trace)
    elif trace in _placed or (present and not _TAKES_LISTS):
        if present:
            _warn()
    else:
        config.post_grad_custom_pre_pass = [*present, JoinProducts()] if present else JoinProducts()
        _placed.add(trace)


@functools.cache
def _warn() -> None:
    warnings.warn(
        "Compiled products with the same input stay apart: results are the same, but slower. "
        "Inductor's post_grad_custom_pre_pass is a pass that phiquant cannot add its own to. "
        "Remedy: derive it from phiquant.graph_passes.JoinProducts, and begin with "
        "super().__call__(graph).",
        RuntimeWarning,
        stacklevel=2,
    )


def join_products(graph: Graph, devices: Collection[str] = graph_ops.DEVICES) -> None:
    """Replace products with the same input by one call where the first of them is.

    They are of at most 16 rows, known while compiling, and of weights of one layout; with a bias
    each or none. Of exact weights on a GPU alone, and if they have no exceptions. On a GPU none are
    where kernels of Inductor's would wait for the last of several results alone.
    """
    joining = [device for device in devices if device not in EARLY or early_kernels.all_wait()]
    for run in _runs(graph, joining):
        pieces = -(-len(run) // MOST)
        for piece in range(pieces):
            # Cut evenly: four are two and two, since three leave one that is made alone
            _join(graph, run[len(run) * piece // pieces : len(run) * (piece + 1) // pieces])


def _runs(graph: Graph, devices: Collection[str]) -> list[list[Node]]:
    """Products that can be made where the first of them is, for each first one."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    runs: list[list[Node]] = []
    open_runs: dict[tuple[Any, ...], list[list[Node]]] = {}
    for node in graph.nodes:
        if _mutates(node):  # planes that are written here must not be read before
            open_runs.clear()
        if (key := _key(node, devices)) is None:
            continue
        latest = max(places[needed] for needed in node.all_input_nodes)
        alike = open_runs.setdefault(key, [])
        run = next((run for run in alike if latest < places[run[0]]), None)
        if run is None:
            alike.append(run := [])
            runs.append(run)
        run.append(node)
    return runs


def _mutates(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _key(node: Node, devices: Collection[str]) -> tuple[Any, ...] | None:
    """What products of one call agree in, or None if this is none that can be joined."""
    if node.target is not _product or len(node.args) != COUNT + 4:
        return None
    x, *planes, bias, columns, code = node.args
    sizes = [_value(of).shape for of in (x, planes[0])]
    if _value(node).device.type not in devices or not all(
        isinstance(size, int) for size in (*sizes[0][:-1], sizes[1][0], columns, code)
    ):
        return None
    rows, weight_rows = math.prod(sizes[0][:-1]), sizes[1][0]
    if _is_exact(code) and (planes[-1] is not None or _value(node).device.type not in EXACT):
        return None
    if not 0 < rows <= ROWS or weight_rows == 0:
        return None
    return x, columns, code, bias is None


def _value(node: Any) -> Any:
    return node.meta["val"]


def _is_exact(code: Any) -> bool:
    return graph_ops.unpack(code)[5] is not None


def _join(graph: Graph, nodes: list[Node]) -> None:
    if len(nodes) < 2:
        return
    x, columns, code = nodes[0].args[0], *nodes[0].args[-2:]
    arguments = zip(*(node.args for node in nodes), strict=True)
    present = [[one for one in of if one is not None] for of in arguments]
    _, *planes, _, bias, _, _ = present  # but for exceptions, of which there are none
    with graph.inserting_before(nodes[0]):
        joined = graph.call_function(_products, (x, *planes, bias, columns, code))
        parts = [graph.call_function(operator.getitem, (joined, i)) for i in range(len(nodes))]
    joined.meta.update(_meta(nodes[0]))
    for name in ("val", "tensor_meta"):
        if name in nodes[0].meta:
            joined.meta[name] = [node.meta[name] for node in nodes]
    for node, part in zip(nodes, parts, strict=True):
        part.meta.update(_meta(node))
        node.replace_all_uses_with(part)
        graph.erase_node(node)


def _meta(node: Node) -> dict[str, Any]:
    """All but what is said of the arguments, which are others now."""
    return {name: value for name, value in node.meta.items() if name != "eager_input_vals"}
