"""Models that go on with a prompt: alone, or drafting for themselves."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import phiquant
from benchmarks import timing
from benchmarks.generation import PROMPTS
from benchmarks.zoo import smollm2
from phiquant.speculative import Statistics
from phiquant.speculative.passes import Passes
from phiquant.speculative.runner import runner_of

BF16 = "bf16 alone"
TIERS = {"exact": "exact", "8.25 bits": "deviation"}
DRAFTS = ", drafts"


@dataclass
class Speculator:
    """A model and how it generates; what each prompt took is kept.

    drafted: 0 for none, None for as many as pay.
    """

    name: str
    model: nn.Module
    drafted: int | None
    compile: bool
    told: Statistics = field(default_factory=Statistics)
    seconds: list[float] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)

    def warm_up(self, ids: Tensor, tokens: int) -> None:
        """Compile and capture, and learn how many drafts pay."""
        self._generate(ids, tokens, Statistics())

    def go_on(self, ids: Tensor, tokens: int) -> None:
        before = self.told.seconds
        found = self._generate(ids, tokens, self.told)
        self.seconds.append((self.told.seconds - before) / tokens)
        self.texts.append(found[0, ids.shape[1] :].tolist())

    def _generate(self, ids: Tensor, tokens: int, told: Statistics) -> Tensor:
        return phiquant.generate(
            self.model,
            ids.to(self.model.device),  # type: ignore[arg-type]
            max_new_tokens=tokens,
            eos_token_id=[],
            draft_tokens=self.drafted,
            compile=self.compile,
            statistics=told,
        )


def smollm2_speculators(
    dtype: torch.dtype, device: str, drafted: int | None, compile: bool
) -> list[Speculator]:
    """bf16 alone, and each tier alone and with drafts, which take `dtype` as their input."""
    plain, exact = (smollm2.load().bfloat16().to(device) for _ in range(2))  # type: ignore[arg-type]
    exact.to(dtype)  # type: ignore[arg-type]
    phiquant.quantize_(exact, phiquant.PhiConfig(exact=True), progress=False)
    made = [Speculator(BF16, plain, 0, compile)]
    for name, tier in TIERS.items():
        model = phiquant.view(exact, tier)
        made.append(Speculator(name, model, 0, compile))
        made.append(Speculator(name + DRAFTS, model, drafted, compile))
    return made


def pass_times(model: nn.Module, compile: bool, widths: Sequence[int]) -> list[float]:
    """Milliseconds of what drafts by default, and of verifications of so many tokens, after 100."""
    ids = torch.randint(0, 40000, (1, 100), generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.device)  # type: ignore[arg-type]
    passes = Passes(model, runner_of(model).draft(model), 256, compile, ids.is_cuda)
    passes.start(ids, [100])
    places = torch.arange(100, 100 + max(widths), device=ids.device)[None]

    def run(name: str, width: int) -> Callable[[], object]:
        call = passes.draft if name == "draft" else passes.verify

        def once() -> None:
            call(ids[:, :width], places[:, :width], 100)
            if ids.is_cuda:
                torch.cuda.synchronize()

        return once

    for width in widths:
        passes.prepare(1, width - 1)
    runs = {"draft": run("draft", 1)} | {str(w): run("verify", w) for w in widths}
    return [time.median * 1e3 for time in timing.take_turns(runs, 15).values()]


def prompts(count: int) -> list[Tensor]:
    """Token ids ``[1, tokens]`` of chats."""
    tokenizer = smollm2.tokenizer()
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:count]]
    rendered = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    encoded = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return [torch.tensor([ids]) for ids in encoded]


def take_turns(
    made: Sequence[Speculator], ids: Sequence[Tensor], tokens: int, progress: Callable[[str], None]
) -> None:
    """All go on with each prompt before the next."""
    for speculator in made:
        progress(f"warming up {speculator.name}")
        speculator.warm_up(ids[0], tokens)
    for number, prompt in enumerate(ids):
        progress(f"prompt {number + 1} of {len(ids)}")
        for speculator in made:
            speculator.go_on(prompt, tokens)


def identical(one: Speculator, other: Speculator) -> int:
    """Of how many prompts the texts are the same, token for token."""
    return sum(a == b for a, b in zip(one.texts, other.texts, strict=True))


def rows(made: Sequence[Speculator]) -> list[dict[str, Any]]:
    """Medians over prompts; ratios are medians of those within a prompt, or of all seconds."""
    by_name = {speculator.name: speculator for speculator in made}

    def gain(speculator: Speculator, against: str) -> float:
        pairs = zip(by_name[against].seconds, speculator.seconds, strict=True)
        return statistics.median(base / taken for base, taken in pairs)

    found = []
    for speculator in made:
        told, base = speculator.told, speculator.name.removesuffix(DRAFTS)
        found.append(
            {
                "what": speculator.name,
                "tokens_per_s": 1 / statistics.median(speculator.seconds),
                "x_alone": gain(speculator, base),
                "x_bf16": gain(speculator, BF16),
                "x_alone_in_all": sum(by_name[base].seconds) / sum(speculator.seconds),
                "acceptance": told.acceptance if told.drafted else None,
                "repeats_accepted": told.echoed / told.repeated if told.repeated else None,
                "repeats_a_token": told.echoed / told.new_tokens or None,
                "tokens_a_pass": told.tokens_per_pass,
                "drafts_a_round": told.draft_passes / max(len(told.rounds), 1),
                "planes_a_token": told.planes_per_token or None,
                "mb_a_token": told.bytes_per_token / 1e6,
                "ties": told.ties,
                "identical": identical(speculator, by_name[base]),
                "of": len(speculator.texts),
            }
        )
    return found
