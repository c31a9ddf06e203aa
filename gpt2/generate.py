"""Sampling with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2.model import GPT2, KeyValues


@torch.inference_mode()
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
) -> list[list[int]]:
    """The new tokens of each prompt: `max_tokens`, or those before end-of-text where that comes first.

    A prompt in a batch gets what it gets alone: prompts of unequal length keep their own positions, and row i draws
    its own random numbers, from `seed + i`. Temperature 0 takes the likeliest token; `top_k` 0 and `top_p` 1 cut
    nothing off (Fan et al. 2018; Holtzman et al. 2020). With `stop_at_eot` false, end-of-text is a token like any
    other. Raises `ValueError` for an empty prompt, an id beyond the vocabulary, settings out of range, and what does
    not fit the model's positions.
    """
    check(model, prompts, max_tokens, temperature, top_k, top_p)
    was_training, device = model.training, model.wte.weight.device
    model.eval()  # no dropout
    rows, longest = len(prompts), max(len(p) for p in prompts)
    caches = [KeyValues(rows, longest + max_tokens, model.config, model.wte.weight) for _ in model.blocks]
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    ids = torch.full((rows, longest), end_of_text, dtype=torch.long, device=device)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.tensor(list(prompt), device=device)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(rows)]
    hidden = read(model, ids, torch.arange(longest, device=device).expand(rows, -1), caches)
    hidden = hidden[torch.arange(rows, device=device), lengths - 1]
    new: list[list[int]] = [[] for _ in prompts]
    running = [True] * rows
    for count in range(max_tokens):
        chosen = choose(model.logits(hidden).float(), temperature, top_k, top_p, generators)
        for i, token in enumerate(chosen.tolist()):
            running[i] = running[i] and not (stop_at_eot and token == end_of_text)
            if running[i]:
                new[i].append(token)
        if not any(running) or count == max_tokens - 1:
            break
        # Padding of short prompts is overwritten here, position by position, before anything attends to it.
        hidden = read(model, chosen[:, None], (lengths + count)[:, None], caches)[:, 0]
    model.train(was_training)
    return new


def read(model: GPT2, ids: Tensor, positions: Tensor, caches: list[KeyValues]) -> Tensor:
    """Hidden states (B, T, C) of tokens at `positions` (B, T), which the caches remember."""
    for cache in caches:
        cache.positions = positions
    return model.hidden(ids, caches)


def choose(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """(B, V) logits to (B,) tokens."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p  # the token that crosses top_p stays
        probabilities = probabilities.masked_fill(beyond.gather(-1, order.argsort(-1)), 0)
    cumulative = probabilities.double().cpu().cumsum(-1)
    draws = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    return torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0].to(logits.device)


def check(
    model: GPT2, prompts: Sequence[Sequence[int]], max_tokens: int, temperature: float, top_k: int, top_p: float
) -> None:
    """Refuse what can't be generated."""
    room, vocabulary = model.config.n_positions, model.config.vocab_size
    if not prompts:
        raise ValueError("no prompts were given; give one or more")
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens}; give 1 or more")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature}; give 0 (greedy) or a positive number")
    if top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(f"top_k={top_k}, top_p={top_p}; give top_k >= 0 and 0 < top_p <= 1")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} is empty; begin with the end-of-text token to write from nothing")
        if len(prompt) + max_tokens > room:
            left = room - len(prompt)
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens, with max_tokens={max_tokens} more than the model's {room} "
                f"positions; shorten the prompt" + (f" or lower max_tokens to {left}" if left > 0 else "")
            )
        if not all(0 <= token < vocabulary for token in prompt):
            raise ValueError(f"prompt {i} has ids outside 0 to {vocabulary - 1}; use the model's own tokenizer")
