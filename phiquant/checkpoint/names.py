"""Names of stored tensors: ``layer._weight_index`` is the index plane of ``layer.weight``.

The underscores keep the keys of a weight apart from those of modules and plain parameters, for
loaders that tell names apart by patterns.
"""

from __future__ import annotations

import re

from phiquant.plane_tensor import ATTRIBUTES

HEADER = "header"
# What a key ends with, and the attribute of PhiTensor that it is.
PLANES = {**ATTRIBUTES, "checksum": "checksum_plane"}
# A name's last part has no dot: with one, a long key of many dots would take a long time.
_KEY = re.compile(
    rf"(?P<path>.*\.)?_(?P<leaf>[^.]+?)_(?P<plane>{'|'.join([HEADER, *PLANES])})", re.DOTALL
)


def key_of(name: str, plane: str) -> str:
    """The key under which a plane (or the header) of the weight ``name`` is stored.

    >>> key_of("layers.0.weight", "index")
    'layers.0._weight_index'
    """
    path, dot, leaf = name.rpartition(".")
    return f"{path}{dot}_{leaf}_{plane}"


def split_key(key: str) -> tuple[str, str] | None:
    """The weight's name and the plane of a key; None if it cannot be one of a compressed weight.

    >>> split_key("layers.0._in_proj_weight_deviation_low")
    ('layers.0.in_proj_weight', 'deviation_low')
    >>> split_key("layers.0.bias")
    """
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    return (match["path"] or "") + match["leaf"], match["plane"]
