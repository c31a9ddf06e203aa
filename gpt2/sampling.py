"""Which token comes next: the repetition penalty, temperature, top-k, top-p, and the draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

CANDIDATES = (64, 1024)
"""How many of the likeliest tokens top-p looks at first: most often they hold its share, and a sort of all is slow."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 takes the likeliest; `top_k` 0 and `top_p` 1 cut nothing off."""

    temperature: float = 1.0
    """Divides the logits."""
    top_k: int = 0
    """Draw from the k likeliest tokens (Fan et al. 2018)."""
    top_p: float = 1.0
    """Then from the likeliest that together hold this share of probability (Holtzman et al. 2020)."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens that the text has, and multiplies negative ones (CTRL, Keskar et al. 2019)."""
    seed: int = 0
    """Row i draws from a generator of its own, seeded with this + i."""

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}; give 0 (greedy) or a positive number")
        if not isinstance(self.top_k, Integral) or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_k={self.top_k}, top_p={self.top_p}; give a whole top_k, 0 for all tokens, and 0 < top_p <= 1"
            )
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty={self.repetition_penalty}; give a positive number, 1 for none")


class Sampler:
    """Draws each row's tokens from its own random numbers, so that a row gets what it gets alone."""

    def __init__(self, prompts: Sequence[Sequence[int]], max_tokens: int, settings: Sampling, device: torch.device):
        self.settings, self.step = settings, 0
        if settings.temperature:
            seeds = range(settings.seed, settings.seed + len(prompts))
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            draws = [torch.rand(max_tokens, generator=g, dtype=torch.float64) for g in generators]
            self.draws = torch.stack(draws, dim=1).to(device)
            """(max_tokens, B), uniform."""
        if settings.repetition_penalty != 1:
            longest = max(map(len, prompts))
            rows = [[*p, *[p[0]] * (longest - len(p))] for p in prompts]  # a token twice is the same as once
            self.text = torch.tensor(rows, device=device)
            """(B, T): the tokens that each row has so far."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, V) logits to (B,) tokens."""
        settings = self.settings
        if settings.repetition_penalty != 1:
            logits = penalised(logits, self.text, settings.repetition_penalty)
        if settings.temperature == 0:
            tokens = likeliest(logits)
        else:
            tokens = self.draw(logits.float() / settings.temperature, self.draws[self.step])
            self.step += 1
        if settings.repetition_penalty != 1:
            self.text = torch.cat([self.text, tokens[:, None]], dim=1)
        return tokens

    def draw(self, logits: Tensor, draws: Tensor) -> Tensor:
        """(B, V) logits and (B,) uniform numbers to (B,) tokens."""
        top_k, top_p, size = self.settings.top_k, self.settings.top_p, logits.shape[-1]
        order = None
        if 0 < top_k < size:
            logits, order = logits.topk(top_k, dim=-1)
        probabilities = logits.softmax(-1)
        if top_p < 1:
            chosen = nucleus(probabilities, top_p, draws)
        else:
            chosen = at(probabilities.double().cumsum(-1), draws)
        return chosen if order is None else order.gather(1, chosen[:, None])[:, 0]


def likeliest(logits: Tensor) -> Tensor:
    """(B, V) logits to (B,) tokens, the first of equals."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:  # NumPy's takes a tenth of the time (2.13)
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def penalised(logits: Tensor, text: Tensor, penalty: float) -> Tensor:
    """(B, V) logits, with those of each row's (B, T) tokens made less likely."""
    found = logits.gather(1, text)
    return logits.scatter(1, text, torch.where(found < 0, found * penalty, found / penalty))


def nucleus(probabilities: Tensor, top_p: float, draws: Tensor) -> Tensor:
    """(B,) draws from the likeliest tokens that hold `top_p` of each row of (B, V); the one that crosses it stays.

    A row looks at as many candidates as it needs, whatever the others need.
    """
    chosen = torch.empty(len(draws), dtype=torch.long, device=draws.device)
    left = torch.arange(len(draws), device=draws.device)
    for count in (*CANDIDATES, probabilities.shape[-1]):
        ordered, order = probabilities[left].topk(min(count, probabilities.shape[-1]), dim=-1)
        sums = ordered.double().cumsum(-1)
        enough = (sums[:, -1] >= top_p) if count < probabilities.shape[-1] else torch.ones_like(left, dtype=torch.bool)
        ordered, order, sums, rows = ordered[enough], order[enough], sums[enough], left[enough]
        kept = ordered.double().masked_fill(sums - ordered >= top_p, 0).cumsum(-1)
        chosen[rows] = order.gather(1, at(kept, draws[rows])[:, None])[:, 0]
        left = left[~enough]
        if not len(left):
            break
    return chosen


def at(cumulative: Tensor, draws: Tensor) -> Tensor:
    """(B,) places in (B, N) cumulative weights at which (B,) uniform numbers fall."""
    return torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]
