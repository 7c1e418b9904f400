"""Run a compressed model on two ranks, each of which holds half of every large weight.

    torchrun --nproc-per-node 2 examples/two_ranks.py [FOLDER_OR_HUB_NAME]

Without torchrun it starts two ranks itself, and without a name it makes a tiny random model, so
that it runs anywhere. On GPUs the ranks take one each.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.distributed import DistributedConfig

from phiquant import PhiQuantConfig

RANKS = 2
PROMPT = torch.tensor([[1, 2, 3]])


def save_tiny_model(folder: str) -> None:
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, vocab_size=4096
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def generated(source: str, **how: object) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=PhiQuantConfig(), dtype=torch.float32, **how
    )
    report = model.hf_quantizer.report
    rank = dist.get_rank() if dist.is_initialized() else "none"
    print(f"rank {rank} holds {report.stored_bytes / 1e6:.2f} MB: {report.summary}", flush=True)
    ids = PROMPT.to(model.device)
    tokens = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )
    return tokens[0].tolist()


def one_rank(source: str) -> None:
    """The plan is all it takes: each rank compresses what it reads of a weight."""
    tokens = generated(source, distributed_config=DistributedConfig(tp_plan="auto"))
    if dist.get_rank() == 0:
        print("two ranks generate:", tokens)
        if not torch.cuda.is_available():
            assert tokens == generated(source), "one process generates something else"
    dist.barrier()
    dist.destroy_process_group()


def start(rank: int, source: str, folder: str) -> None:
    """What torchrun does: tell this process its rank."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    backend = "nccl" if torch.cuda.device_count() >= RANKS else "gloo"
    meeting = Path(folder, "meeting").as_uri()
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=RANKS)
    one_rank(source)


if __name__ == "__main__":
    source = sys.argv[1] if len(sys.argv) > 1 else ""
    with tempfile.TemporaryDirectory() as folder:
        if not source:
            torch.manual_seed(0)  # under torchrun each rank makes the same one
            save_tiny_model(folder)
        if "RANK" in os.environ:
            one_rank(source or folder)
        else:
            mp.spawn(start, args=(source or folder, folder), nprocs=RANKS)
