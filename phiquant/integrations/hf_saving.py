"""What save_pretrained writes of a compressed model."""

from __future__ import annotations

from torch import Tensor, nn

from phiquant.checkpoint import planes_of
from phiquant.checkpoint.header import VERSION
from phiquant.checkpoint.reader import FORMAT, WEIGHTS
from phiquant.integrations.hf_parallel import held, whole
from phiquant.tensor import PhiTensor


def state_dict_and_metadata(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state of a model with planes in the place of compressed weights, each weight once.

    transformers ties weights again when it loads; the name that is kept is the one it expects.
    Weights that ranks share are gathered, so all ranks have to save.

    Raises:
        ValueError: a compressed weight is on the meta device.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept = _kept_names(parameters, set(getattr(model, "all_tied_weights_keys", None) or ()))
    state: dict[str, Tensor] = {}
    weights = 0
    for name, tensor in model.state_dict().items():
        parameter = parameters.get(name)
        if not isinstance(held(parameter), PhiTensor):
            state[name] = tensor
        elif parameter is not None and kept[id(parameter)] == name:
            state |= planes_of(name, whole(parameter))
            weights += 1
    return state, {FORMAT: str(VERSION), WEIGHTS: str(weights)}


def _kept_names(parameters: dict[str, nn.Parameter], tied: set[str]) -> dict[int, str]:
    """For every parameter its first name that is not tied to another one."""
    kept: dict[int, str] = {}
    for name in sorted(parameters, key=lambda name: name in tied):
        kept.setdefault(id(parameters[name]), name)
    return kept
