"""phiquant: compress the weights of any PyTorch model in place, and run it compressed."""

from typing import TYPE_CHECKING, Any

from phiquant import aten as aten  # registers PhiTensor's operations
from phiquant import sharding as sharding  # registers those on several ranks
from phiquant.checkpoint import Checkpoint, CheckpointError, load, save
from phiquant.checkpoint import open_checkpoint as open
from phiquant.config import PhiConfig
from phiquant.dequantize import dequantize_
from phiquant.diagnosis import Diagnosis, doctor
from phiquant.integrations import autoload as _autoload
from phiquant.offload import offload_
from phiquant.precision import at_precision, view
from phiquant.quantize import preview, quantize_
from phiquant.report import Report
from phiquant.speculative import draft, generate
from phiquant.tensor import PhiTensor
from phiquant.verify import Verification, verify

if TYPE_CHECKING:
    from phiquant.integrations.transformers import PhiQuantConfig as PhiQuantConfig
    from phiquant.integrations.transformers import write_model_card as write_model_card

__version__ = "0.1.0"
__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Diagnosis",
    "PhiConfig",
    "PhiTensor",
    "Report",
    "Verification",
    "at_precision",
    "dequantize_",
    "doctor",
    "draft",
    "generate",
    "load",
    "offload_",
    "open",
    "preview",
    "quantize_",
    "save",
    "verify",
    "view",
]

_autoload.arm()  # transformers' from_pretrained knows the method "phiquant" from here on


_OF_TRANSFORMERS = ("PhiQuantConfig", "write_model_card")


def __getattr__(name: str) -> Any:
    """``phiquant.PhiQuantConfig`` imports transformers when it is asked for."""
    if name not in _OF_TRANSFORMERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from phiquant.integrations import transformers
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "transformers":
            raise
        raise ImportError(f"{name} needs transformers: pip install 'phiquant[hf]'") from error
    return getattr(transformers, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_OF_TRANSFORMERS])
