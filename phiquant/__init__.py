"""phiquant: compress the weights of any PyTorch model in place, and run it compressed."""

from phiquant import aten as _aten  # registers PhiTensor's operations
from phiquant.config import PhiConfig
from phiquant.quantize import preview, quantize_
from phiquant.report import Report
from phiquant.tensor import PhiTensor

__version__ = "0.1.0"
__all__ = ["PhiConfig", "PhiTensor", "Report", "preview", "quantize_"]
