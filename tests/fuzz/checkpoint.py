"""Damage real checkpoints at random, and read, decode and use whatever still opens.

``python -m tests.fuzz.checkpoint --runs 10000``, or ``make fuzz``, which runs it under sanitizers.
Runs are numbered and repeatable: ``--first 1234 --runs 1`` is run 1234 again. They go on in a
process of their own, piece by piece, so that a crash is a finding and not the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import phiquant
from phiquant import CheckpointError, PhiTensor, ops
from phiquant.checkpoint import planes_of
from tests.checkpoint.support import RawFile
from tests.fuzz.mutations import mutate
from tests.fuzz.seeds import MODELS, Folder, seeds

TIERS = (None, "index", "deviation", "exact")
EXPECTED = (ValueError, FileNotFoundError)  # CheckpointError is a ValueError
SECONDS, MEGABYTES = 20, 300  # that one run may take


def uses(tensor: PhiTensor, rng: Random) -> Iterator[Any]:
    """Everything that reads planes; each may raise ValueError on its own."""
    yield tensor.dequantize
    yield lambda: tensor.dequantize(torch.bfloat16)
    yield lambda: tensor.at(0).dequantize()
    rows = tensor.shape[0]
    first = rng.randrange(rows)
    yield lambda: tensor[first : first + 3].clone()
    yield lambda: tensor[:: rng.choice([2, 3])].clone()
    yield lambda: store(tensor[first : first + 1])
    yield lambda: store(tensor)
    yield lambda: tensor.is_exact and tensor.checksum_plane is not None and tensor.verify()
    if tensor.dim() == 2:
        width = tensor.shape[1]
        for dtype in (torch.float32, torch.bfloat16):
            for m in (1, 5, 70):
                x, weight = torch.ones(m, width, dtype=dtype), tensor._with(dtype=dtype)
                yield lambda x=x, weight=weight: functional.linear(x, weight)
        words = torch.tensor([first, 0, rows - 1])
        if not tensor.transposed:
            yield lambda: functional.embedding(words, tensor)
        yield lambda: tensor[:, 512:].clone() if width > 512 else None


def store(tensor: Tensor) -> None:
    """As a file holds it; some views of some kinds are plain tensors."""
    if isinstance(tensor, PhiTensor):
        planes_of("w", tensor)


def use(tensor: Tensor, rng: Random) -> bool:
    """Whether every use of a tensor went without an error."""
    if not isinstance(tensor, PhiTensor):
        tensor.clone()
        return True
    good = True
    for run in uses(tensor, rng):
        try:
            run()
        except ValueError:
            good = False
    return good


def read(path: Path, kind: str, rng: Random) -> str:
    """What became of a damaged checkpoint: where it was refused, or that it was not."""
    outcome = "refused when opened"
    tier = rng.choice(TIERS)
    with suppress(*EXPECTED):
        checkpoint = phiquant.open(path, tier)
        outcome = "used without an error"
        for name in checkpoint:
            try:
                used = use(checkpoint[name], rng)  # kernels alone
                checkpoint.read(name)
            except CheckpointError:
                outcome = "refused when read"
            else:
                if not used and outcome == "used without an error":
                    outcome = "refused by a kernel"
    with suppress(*EXPECTED):
        phiquant.load(MODELS[kind](), path, tier=tier)
    return outcome


def one_run(number: int, corpus: dict[str, Folder], folder: Path) -> tuple[str, str]:
    """(kind and damage, outcome) of one run."""
    rng = Random(number)
    torch.manual_seed(number)
    kind = rng.choice(list(corpus))
    damage, files = mutate(rng, corpus[kind], RawFile.octets)
    for old in folder.iterdir():
        old.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    start, before = time.perf_counter(), peak()
    what = f"run {number} ({kind}: {damage})"
    try:
        outcome = read(folder, kind, rng)
    except Exception:  # every other error is a finding
        return what, f"FINDING: {traceback.format_exc(limit=-6)}"
    seconds, grown = time.perf_counter() - start, peak() - before
    if seconds > SECONDS or grown > MEGABYTES:
        return what, f"FINDING: took {seconds:.1f} s and {grown:.0f} MB"
    return what, outcome


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def piece(first: int, runs: int, log: Path) -> None:
    """Some runs in this process; the log has a line before each and one after."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # slow paths are meant here
    with tempfile.TemporaryDirectory() as folder, log.open("a") as file:
        place = Path(folder)
        (place / "seeds").mkdir()
        (place / "run").mkdir()
        corpus = seeds(place / "seeds")
        for number in range(first, first + runs):
            print(json.dumps([number, "", "FINDING: the process died"]), file=file, flush=True)
            print(json.dumps([number, *one_run(number, corpus, place / "run")]), file=file)


def results(log: Path) -> dict[int, tuple[str, str]]:
    """(what was done, outcome) of every run that was begun; the last line of a run counts."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {number: (what, outcome) for number, what, outcome in map(json.loads, lines)}


def run_pieces(first: int, runs: int, size: int) -> dict[int, tuple[str, str]]:
    """All runs, in processes that may die."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        log, at = Path(folder) / "log", first
        while at < first + runs:
            count = min(size, first + runs - at)
            child = context.Process(target=piece, args=(at, count, log))
            child.start()
            child.join(timeout=60 + 4 * count)
            if child.is_alive():
                child.kill()
                child.join()
            done = max(results(log), default=at - 1) + 1
            if done == at:
                raise RuntimeError(f"no run was begun: exit code {child.exitcode}")
            at = done
            print(f"{at - first} of {runs} runs", flush=True)
        return results(log)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--piece", type=int, default=500, help="runs of one process")
    given = parser.parse_args()
    print(f"phiquant in {Path(phiquant.__file__).parent}, compiled kernels: {ops.compiled}")
    found = run_pieces(given.first, given.runs, given.piece)
    outcomes = Counter(outcome.partition(":")[0] for _, outcome in found.values())
    for outcome, count in outcomes.most_common():
        print(f"{count:7} {outcome}")
    for number, (what, outcome) in found.items():
        if outcome.startswith("FINDING"):
            print(f"--- {what or f'run {number}'}\n{outcome}")
    return int("FINDING" in outcomes)


if __name__ == "__main__":
    raise SystemExit(main())
