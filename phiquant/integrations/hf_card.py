"""A model card for a compressed model: what it is, what was measured, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from phiquant.integrations.hf_config import PhiQuantConfig
from phiquant.report import Report

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CARD = "README.md"
_TEXT = """\
---
library_name: transformers
tags:
- phiquant
{base}---

# {name}, compressed with phiquant

{planes}

| | |
|---|---|
{rows}

## Load it

```python
import phiquant  # pip install 'phiquant[hf]'
from transformers import {auto}

model = {auto}.from_pretrained("path or hub name of this model")
```

`quantization_config=phiquant.PhiQuantConfig(load="index")` reads {index_bits:.2f} bits a weight of
the same files and no more.
"""


def model_card(model: PreTrainedModel) -> str:
    """The text of a card, with the bits a weight takes and the error that was measured.

    The error is known of a model that was compressed and not read from a file at a lower tier.

    Args:
        model: compressed by ``from_pretrained`` or :func:`phiquant.quantize_`, or loaded so.

    Raises:
        ValueError: it is not compressed with phiquant.
    """
    quantizer: Any = getattr(model, "hf_quantizer", None)
    config = getattr(quantizer, "quantization_config", None)
    report = getattr(quantizer, "report", None)
    if not isinstance(config, PhiQuantConfig) or report is None:
        raise ValueError("model: is no transformers model that phiquant compressed")
    return card_text(_name_of(model), type(model).__name__, config, report)


def write_model_card(model: PreTrainedModel, folder: str | Path) -> Path:
    """Write the card to README.md of a folder that ``model.save_pretrained`` wrote; its path.

    Raises:
        FileExistsError: there is a README.md, which is yours and stays.
        ValueError: the model is not compressed with phiquant.
    """
    path = Path(folder) / CARD
    text = model_card(model)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    return path


def card_text(name: str, class_name: str, config: PhiQuantConfig, report: Report) -> str:
    """A card from what is known of a model.

    Args:
        name: of the original; a folder's last part, or a name on a hub.
        class_name: of the transformers model.
        config: how it was compressed, with what was measured.
        report: what became of every parameter.
    """
    left = sum(entry.bytes for entry in report.skipped)
    rows = [
        ("Bits a weight", f"{report.bits_per_weight:.2f}"),
        (
            "Compressed",
            f"{len(report.compressed)} weights, {_megabytes(report.stored_bytes - left)}",
        ),
        ("Left as they were", f"{len(report.skipped)} parameters, {_megabytes(left)}"),
        ("Mean relative error of the weights", _error(config)),
        ("Settings", f"`{config.phi_config}`"),
    ]
    return _TEXT.format(
        base=f"base_model: {name}\n" if "/" in name else "",
        name=name.rpartition("/")[2],
        planes=_planes(config),
        rows="\n".join(f"| {what} | {value} |" for what, value in rows),
        auto=class_name,
        index_bits=config.index_bits + 16 / config.group_size,
    )


def _planes(config: PhiQuantConfig) -> str:
    bits = [f"a {config.index_bits + 16 / config.group_size:.2f}-bit model"]
    if config.deviation_bits:
        bits.append(f"a {config.phi_config.bits_per_weight:.2f}-bit model")
    if config.exact:
        bits.append("the original weights, bit for bit")
    return f"One set of files that holds {', '.join(bits)}."


def _error(config: PhiQuantConfig) -> str:
    """Measured in the Frobenius norm, when the model was compressed."""
    error = (config.measured or {}).get("relative_error")
    if config.exact:
        return "0: every bit was compared"
    return "not measured at this tier" if error is None else f"{error:.2e}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _name_of(model: PreTrainedModel) -> str:
    """A hub's name, or the last part of a path, which may say much of a machine."""
    name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    is_path = Path(name).exists() or name.count("/") != 1
    return Path(name).name if is_path else name
