"""The settings of evaluation."""

from __future__ import annotations

from pydantic import Field

from gpt2.settings import Settings

SHARE, LEAST, MOST = 0.05, 2**17, 10_000_000
"""Without `max_tokens`, this share of the tokens that pretraining reads, within these bounds (tokens). A token that is
only read costs a third of one that is learned."""


class EvaluateConfig(Settings):
    """How much held-out text a base model is measured on."""

    max_tokens: int | None = Field(None, ge=1024)
    """Most held-out tokens that the base model is measured on: whole documents, evenly drawn. Empty: a twentieth of
    the tokens that pretraining reads, but 131,072 at least and 10 million at most. The report says what was left out,
    and its intervals what that leaves open."""

    def most(self, learned: int | None) -> int:
        """Return the bound (tokens) after a pretraining that reads `learned` tokens; None if that is not known yet."""
        if self.max_tokens is not None:
            return self.max_tokens
        return MOST if learned is None else int(min(max(LEAST, SHARE * learned), MOST))
