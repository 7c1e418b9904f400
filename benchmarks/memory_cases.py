"""One way to load or compress a model, measured in a process of its own.

Code and kernels are warm: the same was done with a tiny model before. Each case returns its peaks
and a digest of the planes that it came by.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import phiquant
from benchmarks.resident import peak_of
from phiquant import PhiConfig, PhiQuantConfig, PhiTensor
from phiquant.cli.compression import Job, compress
from phiquant.cli.progress import Progress
from phiquant.cli.source import Source

EXACT = PhiConfig(exact=True)
LOSSY = PhiConfig()
TIERS = ("index", "deviation", "exact")
_TOKENS = torch.arange(3, 11)[None]


def plain(folder: Path) -> nn.Module:
    return _run(AutoModelForCausalLM.from_pretrained(folder / "plain", dtype="auto"))


def on_load(folder: Path, exact: bool) -> nn.Module:
    config = PhiQuantConfig(exact=exact)
    return AutoModelForCausalLM.from_pretrained(
        folder / "plain", dtype="auto", quantization_config=config
    )


def command(folder: Path, config: PhiConfig, name: str, shard: int) -> None:
    """What `phiquant compress` does, below its options."""
    job = Job(Source.at(folder / "plain"), folder / name, config, max_shard_size=shard)
    compress(job, Progress(shown=False), force=True)


def reload(folder: Path, tier: str) -> nn.Module:
    how = {"quantization_config": PhiQuantConfig(load=tier)}
    return _run(AutoModelForCausalLM.from_pretrained(folder / "exact", dtype="auto", **how))


def load(folder: Path) -> nn.Module:
    config = LlamaConfig.from_pretrained(folder / "lossy")
    config.quantization_config = None
    return _run(phiquant.load(lambda: LlamaForCausalLM(config).eval(), folder / "lossy"))


def slice_of_open(folder: Path) -> Tensor:
    checkpoint = phiquant.open(folder / "exact")
    weight = checkpoint["model.layers.0.mlp.down_proj.weight"]
    return weight[3:5].dequantize()  # type: ignore[attr-defined]


def _run(model: nn.Module) -> nn.Module:
    with torch.inference_mode():
        model(_TOKENS)
    return model


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of every plane, and of every plain tensor, under its name."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        parts = tensor.planes if isinstance(tensor, PhiTensor) else (tensor,)
        for part in parts:
            if part is not None:
                state.update(name.encode())
                state.update(part.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def digest_of(result: Any, folder: Path, name: str) -> str:
    """Of what a case returned, or of the checkpoint of this name if it wrote one."""
    if isinstance(result, nn.Module):
        return digest(result.named_parameters())
    if isinstance(result, Tensor):
        return digest([("slice", result)])
    checkpoint = phiquant.open(folder / name)
    return digest((name, checkpoint[name]) for name in checkpoint)


def cases(shard: int) -> dict[str, Callable[[Path], Any]]:
    """By name; those that write come before those that read it."""
    return {
        "plain": plain,
        "on load, 8.25 bits": lambda folder: on_load(folder, False),
        "on load, exact": lambda folder: on_load(folder, True),
        "command, 8.25 bits": lambda folder: command(folder, LOSSY, "lossy", shard),
        "command, exact": lambda folder: command(folder, EXACT, "exact", shard),
        **{f"reload, {tier}": lambda folder, t=tier: reload(folder, t) for tier in TIERS},
        "phiquant.load, 8.25 bits": load,
        "phiquant.open, two rows": slice_of_open,
    }


def main(name: str, large: str, tiny: str, shard: str) -> None:
    """Run one case on the tiny model, then on the large one; print JSON."""
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)
    run = cases(int(shard))[name]
    run(Path(tiny))
    result, peaks = peak_of(lambda: run(Path(large)))
    written = "exact" if name.endswith("exact") else "lossy"
    print(json.dumps({"peaks": peaks, "digest": digest_of(result, Path(large), written)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
