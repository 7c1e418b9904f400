"""The aten table of PhiTensor: what each operation does with planes instead of values.

An operation that has no entry decodes the weight and runs as on a plain tensor (`fallback`).
"""

from phiquant.aten import (
    attention,
    convolutions,
    copies,
    experts,
    fallback,
    joins,
    lookups,
    placement,
    products,
    rooms,
    views,
)

__all__ = [
    "attention",
    "convolutions",
    "copies",
    "experts",
    "fallback",
    "joins",
    "lookups",
    "placement",
    "products",
    "rooms",
    "views",
]
