"""Weights to planes and back: the readable reference of format version 1 (docs/format.md)."""

from phiquant.codec.decode import decode
from phiquant.codec.encode import DTYPES, FITS, encode
from phiquant.codec.layout import GROUP_SIZES, Layout, Planes
from phiquant.codec.packing import pack, unpack
from phiquant.codec.scales import exponent_for, read_words

__all__ = [
    "DTYPES",
    "FITS",
    "GROUP_SIZES",
    "Layout",
    "Planes",
    "decode",
    "encode",
    "exponent_for",
    "pack",
    "read_words",
    "unpack",
]
