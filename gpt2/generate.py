"""Generation of tokens with a key-value cache. `gpt2.writing` makes texts of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral

import torch

from gpt2.decode import decoder
from gpt2.model import GPT2, KeyValues
from gpt2.sampling import Sampler, Sampling


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
    """The new tokens of each prompt: `max_tokens`, or those before end-of-text where that comes first.

    A prompt in a batch gets what it gets alone: prompts of unequal length keep their own positions, and row i draws
    its own random numbers, from `seed + i`. Each prompt has `samples` rows, one after the other. The settings of
    drawing are those of `Sampling`. With `stop_at_eot` false, end-of-text is a token like any other. `truncate` cuts
    the beginnings of prompts that don't fit, with a warning. Raises `ValueError` for an empty prompt, an id beyond the
    vocabulary, settings out of range, and what does not fit the model's positions.
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
    """A token of each row at a time, at most `max_tokens` times; ends when the caller has set all of `running` false.

    The prompts are ones that `fitting` has let through.
    """
    like, rows, longest = model.wte.weight, len(prompts), max(map(len, prompts))
    empty = torch.tensor([longest - len(p) for p in prompts], device=like.device)[:, None]  # slots before each text
    slots = torch.arange(longest + max_tokens, device=like.device)
    seen = None
    if empty.any():
        seen = torch.zeros(rows, len(slots), dtype=like.dtype, device=like.device)
        seen = seen.masked_fill(slots < empty, float("-inf"))[:, None, None]
    caches = [KeyValues(rows, len(slots), model.config, like, seen) for _ in model.blocks]
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
    """While open, there is no dropout."""
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
    """The prompts, where they can be continued by `max_tokens`; `ValueError` where not.

    `truncate` keeps the ends of those that are too long, and warns.
    """
    room, vocabulary = model.config.n_positions, model.config.vocab_size
    if not prompts:
        raise ValueError("no prompts were given; give one or more")
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens}; give 1 or more")
    left = room - max_tokens
    if truncate and left > 0 and (cut := [i for i, prompt in enumerate(prompts) if len(prompt) > left]):
        told = f"prompt {cut[0]}" if len(cut) == 1 else f"{len(cut)} prompts"
        warnings.warn(
            f"of {told} only the last {left} tokens are read: with max_tokens={max_tokens} more do not fit the "
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
