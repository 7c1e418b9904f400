"""Run checks on two ranks that share one process group, because starting them takes seconds."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

RANKS = 2
SECONDS_A_COLLECTIVE = 20
NOT_RUN = "did not run, or did not end"

Check = tuple[Callable[..., None], tuple[Any, ...]]  # (mesh, *arguments), the arguments


def run(checks: Sequence[Check], seconds: float = 120) -> dict[str, str]:
    """What is wrong with each check on any rank, by :func:`name`; empty if nothing is.

    A check that waits for ever ends with the time, and takes those after it along.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.spawn(_rank, (list(checks), folder), nprocs=RANKS, join=False)
        end = time.monotonic() + seconds
        while any(process.is_alive() for process in context.processes) and time.monotonic() < end:
            time.sleep(0.05)
        for process in context.processes:
            process.kill()
            process.join()
        found = [_read(Path(folder, f"{rank}.json")) for rank in range(RANKS)]
    wrong = {}
    for check in map(name, checks):
        messages = [f"rank {rank}: {of.get(check, NOT_RUN)}" for rank, of in enumerate(found)]
        wrong[check] = "\n".join(m for m in messages if not m.endswith(": "))
    return wrong


def name(check: Check) -> str:
    function, arguments = check
    return "-".join([function.__name__, *(str(argument) for argument in arguments)])


def _rank(rank: int, checks: list[Check], folder: str) -> None:
    ranks = {"RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": RANKS}
    os.environ |= {key: str(value) for key, value in ranks.items()} | {"HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=SECONDS_A_COLLECTIVE),
    )
    mesh, found = init_device_mesh("cpu", (RANKS,)), {}
    for function, arguments in checks:
        found[name((function, arguments))] = _outcome(function, mesh, arguments)
        Path(folder, f"{rank}.json").write_text(json.dumps(found))
        if any(found.values()):
            break  # the other rank may be in another collective by now
    os._exit(0)  # a rank that waits for one that stopped would make this one wait, too


def _outcome(function: Callable[..., None], mesh: DeviceMesh, arguments: tuple[Any, ...]) -> str:
    try:
        torch.manual_seed(0)
        function(mesh, *arguments)
    except BaseException:  # pytest raises such where a warning is missing
        return traceback.format_exc()
    return ""


def _read(path: Path) -> dict[str, str]:
    return json.loads(path.read_text()) if path.exists() else {}
