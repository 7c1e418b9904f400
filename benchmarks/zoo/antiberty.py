"""AntiBERTy, a masked language model of antibodies, from the package antiberty (MIT)."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from benchmarks.zoo import packages
from benchmarks.zoo.metrics import kl_divergence, negative_log_likelihood, perplexity, placement

# 1.0.0 and later fetch their weights from a server.
_REQUIREMENT = "antiberty==0.1.3"

# Variable domains of therapeutic antibodies, published by the WHO with their names.
SEQUENCES = {
    "trastuzumab heavy": (
        "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQ"
        "MNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS"
    ),
    "trastuzumab light": (
        "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPED"
        "FATYYCQQHYTTPPTFGQGTKVEIK"
    ),
    "adalimumab heavy": (
        "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQ"
        "MNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS"
    ),
    "adalimumab light": (
        "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPED"
        "VATYYCQRYNRAPYTFGQGTKVEIK"
    ),
}


def _folder() -> Path:
    return packages.folder("antiberty", _REQUIREMENT) / "trained_models"


def load() -> BertForMaskedLM:
    """The masked language model in fp32, without the package's classification heads."""
    path = _folder() / "AntiBERTy_md_smooth"
    config = BertConfig.from_pretrained(path)
    model = BertForMaskedLM(config)
    stored = torch.load(path / "pytorch_model.bin", map_location="cpu", weights_only=True)
    state = {name: tensor for name, tensor in stored.items() if name in model.state_dict()}
    state["cls.predictions.bias"] = stored["cls.predictions.decoder.bias"]
    missing, _ = model.load_state_dict(state, strict=False)
    if missing:
        raise RuntimeError(f"{_REQUIREMENT} lacks {missing}")
    model.tie_weights()
    return model.eval()


@functools.cache
def _vocabulary() -> dict[str, int]:
    words = (_folder() / "vocab.txt").read_text().split()
    return {word: i for i, word in enumerate(words)}


def encode(sequence: str) -> Tensor:
    """Token ids of an amino-acid sequence with its begin and end marks, int64 [length + 2]."""
    ids = _vocabulary()
    return torch.tensor([ids["[CLS]"], *(ids[residue] for residue in sequence), ids["[SEP]"]])


@torch.inference_mode()
def masked_logits(model: nn.Module, sequence: str, stride: int = 8) -> Tensor:
    """Logits at every residue while it is masked, fp32 on the CPU [length, vocabulary].

    One pass masks every `stride`-th residue; `stride=len(sequence)` masks one at a time.
    Special tokens, which a residue never is, get -inf.
    """
    device, _ = placement(model)
    ids = encode(sequence)
    stride = min(stride, len(sequence))
    batch = ids.repeat(stride, 1)
    rows = torch.arange(len(sequence))
    batch[rows % stride, rows + 1] = _vocabulary()["[MASK]"]
    logits = model(input_ids=batch.to(device)).logits.float().cpu()
    picked = logits[rows % stride, rows + 1]
    picked[:, [i for word, i in _vocabulary().items() if word.startswith("[")]] = -torch.inf
    return picked


@functools.cache
def _reference(stride: int) -> Tensor:
    model = load()
    return torch.cat([masked_logits(model, s, stride) for s in SEQUENCES.values()])


def evaluate(model: nn.Module, stride: int = 8) -> dict[str, float]:
    """Masked pseudo-perplexity over `SEQUENCES`, and KL to the original's predictions."""
    logits = torch.cat([masked_logits(model, s, stride) for s in SEQUENCES.values()])
    targets = torch.cat([encode(s)[1:-1] for s in SEQUENCES.values()])
    residues = logits[0].isfinite()
    return {
        "pseudo_perplexity": perplexity(negative_log_likelihood(logits, targets)),
        "kl": kl_divergence(_reference(stride)[:, residues], logits[:, residues]),
    }
