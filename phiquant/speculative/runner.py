"""What a model keeps between generations: its draft, compiled passes, and how drafting went."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn

from phiquant.speculative.draft import draft as draft_of
from phiquant.speculative.pace import Pace
from phiquant.speculative.passes import Passes
from phiquant.speculative.stepwise import Stepwise
from phiquant.speculative.trust import Trust
from phiquant.tensor import PhiTensor

_KEY = "_phiquant_runner"
_CHOICES = (1, 2, 3, 4, 5, 6, 7)  # kernels of products take eight rows at once
_COMPILED = (2, 4, 7)  # each takes a while to compile
# Tokens that all passes over one sequence read on a GPU, of lossy and of exact weights: more of
# them would take longer (docs/speculation.md).
_WIDTHS = 4, 8
# And those of compiled ones on a CPU, which choose what to propose token by token.
_COMPILED_WIDTHS = 1, 2, 3, 5
_TRUSTED = {"index": 1 / 3, "deviation": 0.9}
_ROOM = 64, 256  # steps of the cache's size, and where passes are made for one size


class Runner:
    """Belongs to one model, by an attribute that neither a copy nor a file takes along."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = _weights(model)
        self.drafted: nn.Module | None = None
        self.trusted = _TRUSTED["index"]  # what the draft says and is not sure of
        self.wide: int | None = None
        self.kept: dict[tuple[Any, ...], Passes] = {}
        self.paces: dict[tuple[Any, ...], Pace | Stepwise] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()

    def is_of(self, model: nn.Module) -> bool:
        """Whether the model still holds the weights that this was made for."""
        now = _weights(model)
        return len(now) == len(self.weights) and all(
            mine() is theirs() and at == there
            for (mine, at), (theirs, there) in zip(self.weights, now, strict=True)
        )

    def draft(self, model: nn.Module) -> nn.Module:
        if self.drafted is None:
            tier = _tier_of_draft(model)
            self.drafted, self.trusted = draft_of(model, tier=tier), _TRUSTED[tier]
        return self.drafted

    def widths(
        self, model: nn.Module, ids: Tensor, compile: bool, fixed: int | None
    ) -> tuple[int, ...]:
        """How many tokens passes of the model read; nothing where they may be any number.

        On a GPU it does not depend on what is drafted: the same bits come out with drafts and
        without.
        """
        if len(ids) > 1:
            return ()
        if not ids.is_cuda:
            return () if fixed or not compile else _COMPILED_WIDTHS
        if self.wide is None:
            exact = any(isinstance(p, PhiTensor) and p.is_exact for p in model.parameters())
            try:
                self.draft(model)
                self.wide = _WIDTHS[exact]
            except ValueError:  # nothing is less deep
                self.wide = 0
        return (self.wide,) if self.wide else ()

    def pace(
        self,
        ids: Tensor,
        compile: bool,
        fixed: int | None,
        draft: nn.Module,
        widths: tuple[int, ...],
    ) -> Pace | Stepwise:
        """What was learnt of drafting for so many sequences; a fixed number learns nothing."""
        choices: tuple[int, ...] = _COMPILED if compile else _CHOICES
        if widths:
            choices = _CHOICES[: widths[-1] - 1]  # in one pass, which is there for all of them
        if fixed is not None:
            return Pace(choices, fixed)
        stepwise = len(ids) == 1 and not ids.is_cuda  # a GPU is not waited for
        made = Stepwise(max(choices), Trust(self.trusted)) if stepwise else Pace(choices)
        if draft is not self.drafted:
            return made
        return self.paces.setdefault((len(ids), compile, ids.is_cuda), made)

    def passes(
        self,
        model: nn.Module,
        draft: nn.Module,
        ids: Tensor,
        most: int,
        compile: bool,
        fixed: int | None,
    ) -> Passes:
        """Passes over a cache that holds the prompts, `most` tokens after them and drafts."""
        captured, widths = ids.is_cuda, self.widths(model, ids, compile, fixed)
        ahead = max(_CHOICES) if fixed is None else fixed
        static = compile or captured
        room = _ROOM[static]
        # One sequence's drafts end with its text; how many are made changes nothing there.
        most += widths[-1] if widths else ahead + 1
        places = -(-(ids.shape[1] + most) // room) * room
        if not static or (draft is not self.drafted and draft is not model):
            return Passes(model, draft, places, compile, captured, widths)
        key = len(ids), places, compile, captured, widths
        if key not in self.kept:
            self.kept.clear()  # one cache is enough
            self.kept[key] = Passes(model, draft, places, compile, captured, widths)
        elif draft is not model:
            self.kept[key].models["draft"] = draft  # there may have been none so far
        return self.kept[key]


def runner_of(model: nn.Module) -> Runner:
    """The model's, made anew if its weights have been replaced."""
    runner = model.__dict__.get(_KEY)
    if not isinstance(runner, Runner) or not runner.is_of(model):
        runner = model.__dict__[_KEY] = Runner(model)
    return runner


def _tier_of_draft(model: nn.Module) -> str:
    """Of the two below exact, the one that was found faster: docs/speculation.md.

    A draft of 8.25 bits, of which 0.98 hold, takes little longer than one of indices.
    """
    weights = [p for p in model.parameters() if isinstance(p, PhiTensor)]
    exact = sum(p.numel() for p in weights if p.is_exact and p.deviation_bits)
    return "deviation" if 2 * exact > sum(p.numel() for p in weights) else "index"


def _nothing() -> None:
    return None


def _weights(model: nn.Module) -> list[tuple[weakref.ref[Tensor], int]]:
    """Every parameter, and where its first bytes are."""
    return [
        (weakref.ref(p), (p.index_plane if isinstance(p, PhiTensor) else p).data_ptr())
        for p in model.parameters()
    ]
