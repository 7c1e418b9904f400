"""Checkpoints: compressed weights in safetensors files, read from mapped memory."""

from phiquant.checkpoint.errors import CheckpointError
from phiquant.checkpoint.modules import load, save
from phiquant.checkpoint.reader import Checkpoint, open_checkpoint
from phiquant.checkpoint.stored_planes import planes_of
from phiquant.checkpoint.writer import ShardWriter

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ShardWriter",
    "load",
    "open_checkpoint",
    "planes_of",
    "save",
]
