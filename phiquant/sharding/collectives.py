"""Collectives on compressed weights: what DTensor calls to scatter, broadcast and gather them.

A weight travels as one row of bytes (:mod:`phiquant.sharding.wire`). Its length goes ahead, because
the shards of an exact weight differ in it. Each collective is waited for before its bytes are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from phiquant.sharding import wire
from phiquant.tensor import PhiTensor

c10d, functional = torch.ops.c10d, torch.ops._c10d_functional
_MIXED = -1
Send = Callable[[Tensor, list[Tensor]], Any]  # (what is received, what this rank sends) -> work


@PhiTensor.implements(c10d.scatter_.default)
def _(func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
    outputs, inputs, *rest = args

    def send(received: Tensor, sent: list[Tensor]) -> Any:
        return func([received], [sent] if sent else [], *rest)[1]

    return outputs, _exchange(outputs[0], [part for parts in inputs for part in parts], send)


@PhiTensor.implements(c10d.broadcast_.default)
def _(func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
    tensors, group, root, *rest = args
    ranks = torch.distributed.ProcessGroup.unbox(group)

    def send(received: Tensor, sent: list[Tensor]) -> Any:
        if sent:
            received.copy_(sent[0])
        return func([received], group, root, *rest)[1]

    return tensors, _exchange(tensors[0], tensors if ranks.rank() == root else [], send)


def _exchange(target: PhiTensor, sources: Sequence[Any], send: Send) -> Any:
    """Receive into ``target``, whose planes are replaced; returns the last collective's work."""
    mixed = not all(isinstance(source, PhiTensor) for source in sources)
    longest = _MIXED if mixed else max([wire.length(source) for source in sources], default=0)
    said = torch.tensor([longest], device=target.index_plane.device)
    send(said, [said.clone() for _ in sources]).wait()
    longest = int(said)
    if longest == _MIXED:
        raise ValueError(
            f"{target.describe()}: some of its shards cut a group and some do not; choose a number "
            "of ranks that divides the groups of a row"
        )
    octets = torch.empty(longest, dtype=torch.uint8, device=said.device)
    work = send(octets, [wire.pack(source, longest) for source in sources])
    work.wait()
    received = wire.unpack(octets, target, target.scale_plane.shape[0])
    for name in (*target.tensor_data_names, *target.optional_tensor_data_names):
        setattr(target, name, getattr(received, name))
    target.exponent, target.stored_dtype = received.exponent, received.stored_dtype
    return work


@PhiTensor.implements(functional.all_gather_into_tensor.default)
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    self, *rest = args
    if torch.compiler.is_compiling():
        return _gathered_in_graph(self, func, rest)

    def gather(octets: Tensor) -> Tensor:
        return functional.wait_tensor.default(func(octets, *rest))

    device = self.index_plane.device
    lengths = gather(torch.tensor([wire.length(self)], device=device)).tolist()
    octets = gather(wire.pack(self, max(lengths))).view(len(lengths), -1)
    rows = self.scale_plane.shape[0]
    return wire.joined([wire.unpack(part, self, rows) for part in octets])


def _gathered_in_graph(
    self: PhiTensor, func: Callable[..., Tensor], rest: Sequence[Any]
) -> PhiTensor:
    """While tracing no length can be looked at; shards have the exponent of their weight."""
    if self.is_exact or self.exception_plane is not None:
        raise RuntimeError(
            f"{self.describe()}: shards of an exact weight differ in length, which a compiled "
            "graph cannot gather; gather it outside of the graph, or compile phiquant.view(model, "
            '"deviation")'
        )
    return self._apply_fn_to_data(lambda plane: func(plane, *rest))


@PhiTensor.implements([functional.wait_tensor.default, functional._wrap_tensor_autograd.default])
def _(func: Callable[..., Tensor], types: Any, args: Any, kwargs: Any) -> Tensor:
    if torch.compiler.is_compiling():
        return args[0]._apply_fn_to_data(func)
    return args[0]._with()  # what was gathered was waited for
