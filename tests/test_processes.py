"""A compressed model in another process, which was spawned and knows nothing of it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn

import phiquant
from phiquant import PhiConfig, PhiTensor

KINDS = {"multiprocessing": multiprocessing, "torch.multiprocessing": torch.multiprocessing}


def models() -> nn.ModuleDict:
    """The same layers at every kind of depth; one with exceptions."""
    torch.manual_seed(0)
    configs = {"index": PhiConfig(deviation_bits=0), "default": PhiConfig()}
    configs["exact"] = PhiConfig(exact=True)
    models = nn.ModuleDict({name: nn.Linear(128, 16) for name in configs})
    models["exact"].weight.data[3, 5] = -0.0
    models["tied"] = models["default"]
    for name, config in configs.items():
        phiquant.quantize_(models[name], config)
    return models


def answer(models: nn.ModuleDict, x: Tensor, queue: Any) -> None:
    """What a worker makes of models that it received."""
    weights = {name: model.weight for name, model in models.items()}
    queue.put(
        {
            "outputs": {name: model(x).tolist() for name, model in models.items()},
            "compressed": all(isinstance(weight, PhiTensor) for weight in weights.values()),
            "names": [weight.fqn for weight in weights.values()],
            "tied": weights["tied"] is weights["default"],
            "verified": weights["exact"].verify(),
        }
    )


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 128, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def answers(x: Tensor) -> Iterator[dict[str, Any]]:
    """Of one worker of each kind; they start at the same time, which is what takes long."""
    started = {}
    for kind, module in KINDS.items():
        context = module.get_context("spawn")
        queue = context.Queue()
        process = context.Process(target=answer, args=(models(), x, queue))
        process.start()
        started[kind] = (process, queue)
    yield {kind: queue.get(timeout=300) for kind, (_, queue) in started.items()}
    for process, _ in started.values():
        process.join(60)
        assert process.exitcode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_computes_the_same(answers: dict[str, Any], kind: str, x: Tensor) -> None:
    here = models()
    expected = {name: model(x).tolist() for name, model in here.items()}
    assert answers[kind]["outputs"] == expected
    assert answers[kind]["compressed"]
    assert answers[kind]["names"] == ["weight"] * 4
    assert answers[kind]["tied"]
    assert answers[kind]["verified"]
