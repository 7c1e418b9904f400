"""Weights to planes and back: the readable reference of format version 1 (docs/format.md)."""

from phiquant.codec.decode import decode
from phiquant.codec.encode import FITS, encode, encode_remainder
from phiquant.codec.joins import join, repeat_row, shift_exponent
from phiquant.codec.layout import DTYPES, GROUP_SIZES, Layout, Planes
from phiquant.codec.packing import pack, unpack
from phiquant.codec.scales import exponent_for, read_words
from phiquant.codec.views import SHAPED, Cut, cut_columns, cut_rows, pick_rows

__all__ = [
    "DTYPES",
    "FITS",
    "GROUP_SIZES",
    "SHAPED",
    "Cut",
    "Layout",
    "Planes",
    "cut_columns",
    "cut_rows",
    "decode",
    "encode",
    "encode_remainder",
    "exponent_for",
    "join",
    "pack",
    "pick_rows",
    "read_words",
    "repeat_row",
    "shift_exponent",
    "unpack",
]
