"""Texts continued: prompts in, text out, whole or as it comes."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

from gpt2.generate import at_least_one, fitting, steps
from gpt2.model import GPT2
from gpt2.sampling import Sampling
from gpt2.tokenizer import Tokenizer


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
    """Each prompt's continuations, `samples` of them: up to end-of-text, a stop string, or `max_tokens` tokens.

    A text ends before the stop string that is complete first. An empty prompt begins a new document. `truncate` cuts
    the beginnings of prompts that leave no room, with a warning. Raises `ValueError` as `gpt2.generate.generate` does,
    for an empty stop string, and for a tokenizer of another size than the model.
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
    """What `write` makes of one prompt, in pieces, each as soon as it is certain: characters are whole, and what may
    be the beginning of a stop string waits."""
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
) -> Iterator[tuple[int, str]]:
    """(row, text that it goes on with) of all rows, as it comes; none is empty."""
    tokenizer.check(model.config.vocab_size)
    if "" in stop:
        raise ValueError("a stop string is empty; leave it out")
    ids = [tokenizer.encode(prompt) or [tokenizer.end_of_text] for prompt in prompts]
    rows = [row for row in fitting(model, ids, max_tokens, truncate) for _ in range(samples)]
    running, texts = [True] * len(rows), [Pieces(tokenizer, stop) for _ in rows]
    for tokens in steps(model, rows, max_tokens, settings or Sampling(), running):
        for i, token in enumerate(tokens):
            if running[i] and token == tokenizer.end_of_text:
                running[i] = False
            elif running[i]:
                if piece := texts[i].add(token):
                    yield i, piece
                running[i] = not texts[i].stopped
    for i, text in enumerate(texts):
        if piece := text.end():
            yield i, piece


class Pieces:
    """The text of tokens as they come."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.bytes, self.stop = tokenizer.token_bytes, list(stop)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held = ""
        """What may be the beginning of a stop string."""
        self.stopped = False

    def add(self, token: int) -> str:
        """What is certain with one more token."""
        return self._certain(self.decoder.decode(self.bytes[token]), last=False)

    def end(self) -> str:
        """What was held back; half a character becomes U+FFFD, as in `Tokenizer.decode`."""
        return "" if self.stopped else self._certain(self.decoder.decode(b"", final=True), last=True)

    def _certain(self, new: str, last: bool) -> str:
        text = self.held + new
        found = [(at + len(stop), at) for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)[1]]
        waiting = 0 if last else max((overlap(text, stop) for stop in self.stop), default=0)
        self.held = text[len(text) - waiting :]
        return text[: len(text) - waiting]


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of a stop string, but not all of it."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
