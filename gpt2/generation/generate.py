"""Prompts to texts, whole or streamed, token by token with a key-value cache.

Sampling applies the repetition penalty, temperature, top-k and top-p, then draws from each row's own random numbers.
"""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from gpt2.data.tokenizer import Tokenizer
from gpt2.generation.cpu_decoder import decoder
from gpt2.model.hardware import on_cpu
from gpt2.model.transformer import GPT2, KVCache

CANDIDATES = (64, 1024)
"""Numbers of most likely tokens that top-p tries before it sorts all. Most often they hold its share, and a full sort
is slow."""


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 exclude nothing."""

    temperature: float = 1.0
    """Divides the logits."""
    top_k: int = 0
    """Draw from the k most likely tokens (Fan et al. 2018)."""
    top_p: float = 1.0
    """Then draw from the most likely tokens that together hold this share of probability (Holtzman et al. 2020)."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens already in the text, and multiplies negative ones (CTRL, Keskar et al. 2019).
    """
    seed: int = 0
    """Row i has its own generator, seeded with `seed` + i."""

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
    """Draws each row's tokens from its own random numbers, so that a row gets the same result in any batch."""

    def __init__(self, prompts: Sequence[Sequence[int]], max_tokens: int, settings: Sampling, device: torch.device):
        self.settings, self.step = settings, 0
        if settings.temperature:
            seeds = range(settings.seed, settings.seed + len(prompts))
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            draws = [torch.rand(max_tokens, generator=g, dtype=torch.float64) for g in generators]
            self.draws = torch.stack(draws, dim=1).to(device)
            """(max_tokens, B): uniform random numbers."""
        if settings.repetition_penalty != 1:
            longest = max(map(len, prompts))
            rows = [[*p, *[p[0]] * (longest - len(p))] for p in prompts]  # repeating a token changes nothing
            self.text = torch.tensor(rows, device=device)
            """(B, T): the tokens of each row so far."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the next tokens, (B,), of (B, V) logits."""
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
        """Return (B,) tokens drawn from (B, V) logits by (B,) uniform numbers."""
        top_k, top_p, size = self.settings.top_k, self.settings.top_p, logits.shape[-1]
        order = None
        if 0 < top_k < size:
            logits, order = logits.topk(top_k, dim=-1)
        probabilities = logits.softmax(-1)
        if top_p < 1:
            chosen = nucleus(probabilities, top_p, draws)
        else:
            chosen = pick(probabilities.double().cumsum(-1), draws)
        return chosen if order is None else order.gather(1, chosen[:, None])[:, 0]


def likeliest(logits: Tensor) -> Tensor:
    """Return the most likely tokens, (B,), of (B, V) logits; the first of equal ones."""
    if on_cpu(logits) and logits.dtype == torch.float32:  # NumPy's argmax takes a tenth of the time (PyTorch 2.13)
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def penalised(logits: Tensor, text: Tensor, penalty: float) -> Tensor:
    """Return the logits, (B, V), with those of each row's tokens, (B, T), made less likely."""
    present = logits.gather(1, text)
    return logits.scatter(1, text, torch.where(present < 0, present * penalty, present / penalty))


def nucleus(probabilities: Tensor, top_p: float, draws: Tensor) -> Tensor:
    """Return (B,) draws from each row's most likely tokens that hold `top_p` of the probabilities (B, V).

    The token that crosses `top_p` is included. Each row considers as many candidates as it needs, whatever the other
    rows need.
    """
    chosen = torch.empty(len(draws), dtype=torch.long, device=draws.device)
    left = torch.arange(len(draws), device=draws.device)
    for count in (*CANDIDATES, probabilities.shape[-1]):
        ordered, order = probabilities[left].topk(min(count, probabilities.shape[-1]), dim=-1)
        sums = ordered.double().cumsum(-1)
        enough = (sums[:, -1] >= top_p) if count < probabilities.shape[-1] else torch.ones_like(left, dtype=torch.bool)
        ordered, order, sums, rows = ordered[enough], order[enough], sums[enough], left[enough]
        kept = ordered.double().masked_fill(sums - ordered >= top_p, 0).cumsum(-1)
        chosen[rows] = order.gather(1, pick(kept, draws[rows])[:, None])[:, 0]
        left = left[~enough]
        if not len(left):
            break
    return chosen


def pick(cumulative: Tensor, draws: Tensor) -> Tensor:
    """Return the (B,) indices at which (B,) uniform numbers fall in (B, N) cumulative weights."""
    return torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]


def write(
    model: GPT2,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_tokens: int,
    settings: Sampling | None = None,
    stop: Sequence[str] = (),
    samples: int = 1,
    truncate: bool = False,
) -> list[list[str]]:
    """Return each prompt's `samples` continuations, up to end-of-text, a stop string, or `max_tokens` tokens.

    A text ends before the first stop string that is complete. An empty prompt begins a new document. `truncate` cuts
    the beginnings of prompts that leave no room, with a warning.

    `ValueError` as in `generate`, for an empty stop string, and for a tokenizer that does not fit the model.
    """
    texts = [""] * (len(prompts) * at_least_one(samples))
    for row, piece in pieces(model, tokenizer, prompts, max_tokens, settings, stop, samples, truncate):
        texts[row] += piece
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def stream(
    model: GPT2,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int,
    settings: Sampling | None = None,
    stop: Sequence[str] = (),
    truncate: bool = False,
) -> Iterator[str]:
    """Yield the continuation of one prompt in pieces, each as soon as it is certain.

    A piece has whole characters. A possible beginning of a stop string is held back.
    """
    for _, piece in pieces(model, tokenizer, [prompt], max_tokens, settings, stop, 1, truncate):
        yield piece


def pieces(
    model: GPT2,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_tokens: int,
    settings: Sampling | None,
    stop: Sequence[str],
    samples: int,
    truncate: bool,
    texts: list[Pieces] | None = None,
) -> Iterator[tuple[int, str]]:
    """Yield (row, new text) of all rows as it is written; the text is never empty.

    `texts`, an empty list, gets the rows' `Pieces`, which count their tokens.
    """
    tokenizer.check(model.config.vocab_size)
    if "" in stop:
        raise ValueError("a stop string is empty; leave it out")
    ids = [tokenizer.encode(prompt) or [tokenizer.end_of_text] for prompt in prompts]
    rows = [row for row in fitting(model, ids, max_tokens, truncate) for _ in range(samples)]
    texts = [] if texts is None else texts
    running = [True] * len(rows)
    texts += [Pieces(tokenizer, stop) for _ in rows]
    for tokens in steps(model, rows, max_tokens, settings or Sampling(), running):
        for i, token in enumerate(tokens):
            if running[i] and token == tokenizer.end_of_text:
                running[i], texts[i].ended = False, True
            elif running[i]:
                if piece := texts[i].add(token):
                    yield i, piece
                running[i] = not texts[i].stopped
    for i, text in enumerate(texts):
        if piece := text.end():
            yield i, piece


class Pieces:
    """Decodes tokens to text as they arrive."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.bytes, self.stop = tokenizer.token_bytes, list(stop)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held = ""
        """Text that may be the beginning of a stop string."""
        self.stopped, self.ended = False, False
        """Whether a stop string is complete, and whether end-of-text came."""
        self.count = 0
        """Number of tokens."""

    def add(self, token: int) -> str:
        """Return the text that is certain after one more token."""
        self.count += 1
        return self._certain(self.decoder.decode(self.bytes[token]), last=False)

    def end(self) -> str:
        """Return the text that was held back; an incomplete character becomes U+FFFD, as in `Tokenizer.decode`."""
        return "" if self.stopped else self._certain(self.decoder.decode(b"", final=True), last=True)

    def _certain(self, new: str, last: bool) -> str:
        text = self.held + new
        stops = [(at + len(stop), at) for stop in self.stop if (at := text.find(stop)) >= 0]
        if stops:
            self.stopped, self.held = True, ""
            return text[: min(stops)[1]]
        waiting = 0 if last else max((overlap(text, stop) for stop in self.stop), default=0)
        self.held = text[len(text) - waiting :]
        return text[: len(text) - waiting]


def overlap(text: str, stop: str) -> int:
    """Return the number of characters at the text's end that begin a stop string, without being all of it."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def generate(
    model: GPT2,
    end_of_text: int,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_at_eot: bool = True,
    repetition_penalty: float = 1.0,
    samples: int = 1,
    truncate: bool = False,
) -> list[list[int]]:
    """Return the new tokens of each prompt: `max_tokens` of them, or those before end-of-text if it comes first.

    A prompt's result does not depend on its batch. Prompts of unequal length keep their own positions, and row i draws
    its own random numbers, from `seed + i`. Each prompt has `samples` rows, one after the other. The other settings are
    those of `Sampling`.

    With `stop_at_eot` false, end-of-text is a token like any other. `truncate` cuts the beginnings of prompts that
    don't fit, with a warning.

    `ValueError` for an empty prompt, an id beyond the vocabulary, settings out of range, and prompts that don't fit the
    model's positions.
    """
    settings = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    rows = [prompt for prompt in fitting(model, prompts, max_tokens, truncate) for _ in range(at_least_one(samples))]
    new: list[list[int]] = [[] for _ in rows]
    running = [True] * len(rows)
    for tokens in steps(model, rows, max_tokens, settings, running):
        for i, token in enumerate(tokens):
            running[i] = running[i] and not (stop_at_eot and token == end_of_text)
            if running[i]:
                new[i].append(token)
    return new


@torch.inference_mode()
def steps(
    model: GPT2, prompts: Sequence[Sequence[int]], max_tokens: int, settings: Sampling, running: list[bool]
) -> Iterator[list[int]]:
    """Yield the next token of each row, at most `max_tokens` times, until the caller has set all of `running` false.

    The prompts must have passed `fitting`.
    """
    like, rows, longest = model.wte.weight, len(prompts), max(map(len, prompts))
    empty = torch.tensor([longest - len(p) for p in prompts], device=like.device)[:, None]  # slots before each text
    slots = torch.arange(longest + max_tokens, device=like.device)
    seen = None
    if empty.any():
        seen = torch.zeros(rows, len(slots), dtype=like.dtype, device=like.device)
        seen = seen.masked_fill(slots < empty, float("-inf"))[:, None, None]
    caches = [KVCache(rows, len(slots), model.config, like, seen) for _ in model.blocks]
    positions = (slots - empty).clamp_min(0)
    ids = torch.tensor([[*[0] * (longest - len(p)), *p] for p in prompts], device=like.device)
    sampler = Sampler(prompts, max_tokens, settings, like.device)
    with evaluating(model):
        caches[0].positions = positions[:, :longest]
        logits = model.logits(model.hidden(ids, caches)[:, -1])
    faster = decoder(model, rows, max_tokens - 1)
    for place in range(longest, longest + max_tokens):
        chosen = sampler(logits)
        yield chosen.tolist()
        if place == longest + max_tokens - 1 or not any(running):
            break
        if faster:
            logits = faster.logits(chosen, positions[:, place], caches)
            continue
        with evaluating(model):
            caches[0].positions = positions[:, place, None]
            logits = model.logits(model.hidden(chosen[:, None], caches)[:, 0])


@contextmanager
def evaluating(model: GPT2) -> Iterator[None]:
    """Switch dropout off while the context is open."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


def fitting(
    model: GPT2, prompts: Sequence[Sequence[int]], max_tokens: int, truncate: bool = False
) -> Sequence[Sequence[int]]:
    """Return the prompts if `max_tokens` more tokens fit the model's positions; `ValueError` if they don't.

    `truncate` keeps the ends of prompts that are too long, with a warning.
    """
    room, vocabulary = model.config.n_positions, model.config.vocab_size
    if not prompts:
        raise ValueError("no prompts were given; give one or more")
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens}; give 1 or more")
    left = room - max_tokens
    if truncate and left > 0 and (cut := [i for i, prompt in enumerate(prompts) if len(prompt) > left]):
        which = f"prompt {cut[0]}" if len(cut) == 1 else f"{len(cut)} prompts"
        warnings.warn(
            f"{which}: only the last {left} tokens are read, as max_tokens={max_tokens} leaves no room for more in the "
            f"model's {room} positions",
            stacklevel=3,
        )
        prompts = [prompt[-left:] for prompt in prompts]
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} is empty; begin with the end-of-text token to write from nothing")
        if len(prompt) + max_tokens > room:
            less = room - len(prompt)
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens, with max_tokens={max_tokens} more than the model's {room} "
                f"positions; shorten the prompt" + (f" or lower max_tokens to {less}" if less > 0 else "")
            )
        for place, token in enumerate(prompt):
            if not isinstance(token, Integral) or not 0 <= token < vocabulary:
                raise ValueError(
                    f"prompt {i} has {token!r} at {place}, where ids are whole numbers from 0 to {vocabulary - 1}; use "
                    f"the model's own tokenizer"
                )
    return prompts


def at_least_one(samples: int) -> int:
    if samples < 1:
        raise ValueError(f"samples={samples}; give 1 or more")
    return samples
