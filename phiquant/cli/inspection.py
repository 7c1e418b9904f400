"""What a compressed checkpoint holds, and whether its bits are those of the originals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from phiquant.checkpoint import Checkpoint
from phiquant.memory import FreedMemory
from phiquant.precision import TIERS
from phiquant.tensor import PhiTensor
from phiquant.verify import Verification

_NEEDS = {"index": "index", "deviation": "deviation", "exact": "remainder"}  # planes


def inspect(path: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint, and what reading it at each tier takes.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointError: it is damaged.
    """
    whole = Checkpoint(path)
    tiers = _by_tier(path, whole)
    weights = [_weight(name, whole, tiers) for name in whole.headers]
    plain: list[dict[str, Any]] = [
        {"name": name, "shape": list(whole[name].shape), "bytes": whole.stored_bytes(name)}
        for name in whole
        if name not in whole.headers
    ]
    others = sum(entry["bytes"] for entry in plain)
    count = sum(math.prod(entry["shape"]) for entry in weights)
    totals = {}
    for tier in tiers:
        # a weight without this tier is read as deep as it goes
        found = sum(entry["tiers"].get(tier, entry["bytes"]) for entry in weights)
        bits = found * 8 / count if count else 0.0
        totals[tier] = {"bytes": found + others, "bits_per_weight": bits}
    return {
        "files": [file.name for file in whole.files],
        "tied": whole.tied,
        "tiers": totals,
        "weights": weights,
        "plain": plain,
    }


def _by_tier(path: Path, whole: Checkpoint) -> dict[str, Checkpoint]:
    """The checkpoint at every tier that any of its weights has."""
    found: dict[str, Checkpoint] = {}
    for tier in TIERS:
        if any(_NEEDS[tier] in header.planes for header in whole.headers.values()):
            found[tier] = whole if tier == "exact" else Checkpoint(path, tier)
    return found


def _weight(name: str, whole: Checkpoint, tiers: dict[str, Checkpoint]) -> dict[str, Any]:
    header = whole.headers[name]
    has = {tier for tier in tiers if _NEEDS[tier] in header.planes}
    count, total = math.prod(header.shape), whole.stored_bytes(name)
    layout = header.layout
    return {
        "name": name,
        "shape": list(header.shape),
        "dtype": str(header.dtype).removeprefix("torch."),
        "stored_dtype": str(header.stored_dtype).removeprefix("torch."),
        "index_bits": layout.index_bits,
        "deviation_bits": layout.deviation_bits,
        "group_size": layout.group_size,
        "grid": layout.grid,
        "bytes": total,
        "bits_per_weight": total * 8 / count,
        "tiers": {tier: tiers[tier].stored_bytes(name) for tier in tiers if tier in has},
    }


def verify_files(path: Path) -> Verification:
    """Decode every exact weight, some rows at a time, and compare its checksum.

    Raises:
        FileNotFoundError: there is no checkpoint.
        CheckpointError: it is damaged.
        ValueError: it holds no compressed weight.
    """
    checkpoint, result = Checkpoint(path), Verification()
    freed = FreedMemory([str(file) for file in checkpoint.files])
    for name in checkpoint.headers:
        tensor = checkpoint.read(name)
        assert isinstance(tensor, PhiTensor)
        if why_not := tensor.why_not_verifiable():
            result.unverifiable[name] = why_not
        elif found := tensor.mismatch():
            result.failed[name] = found
        else:
            result.verified.append(name)
        freed.add(tensor.stored_bytes)
    if not checkpoint.headers:
        raise ValueError(f"{path}: holds no compressed weight")
    return result
