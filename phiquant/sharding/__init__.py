"""Compressed weights on several ranks: cut, sent, gathered (DTensor, tensor parallel, FSDP2)."""

import torch

from phiquant.sharding.cut import cut, why_not_columns
from phiquant.sharding.gather import gathered
from phiquant.sharding.intervals import all_intervals, intervals_of
from phiquant.sharding.local import local_shard

if torch.distributed.is_available():  # registers what DTensor and FSDP2 call
    from phiquant.sharding import collectives as collectives
    from phiquant.sharding import fsdp as fsdp

__all__ = ["all_intervals", "cut", "gathered", "intervals_of", "local_shard", "why_not_columns"]
