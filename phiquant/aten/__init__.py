"""The aten table of PhiTensor: what each operation does with planes instead of values.

An operation that has no entry decodes the weight and runs as on a plain tensor (`fallback`).
"""

from phiquant.aten import copies, fallback, placement, products, views

__all__ = ["copies", "fallback", "placement", "products", "views"]
