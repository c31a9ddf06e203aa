"""The settings that every task has, and those of evaluation."""

from __future__ import annotations

from pydantic import Field

from gpt2.model.config import AdaptationConfig
from gpt2.settings import Settings, operational
from gpt2.training.config import TrainConfig


class TaskSettings(Settings):
    """Settings that every task has; a task's own `Settings` class adds to them."""

    enabled: bool = True
    """Run this task in the pipeline."""
    source: str = Field(..., min_length=1)
    """The labelled data: a file, a directory or `sample:NAME`."""
    register_as: str | None = operational(None, pattern=r"^[a-z0-9][a-z0-9-]{0,60}$")
    """Name of the registered model, after `gpt2-`; empty: the task's name. The gate compares models on the champion's
    examples, so models of other data need a name of their own."""
    num_workers: int | None = operational(None, ge=1, le=4096)
    """Workers of this task's training; empty: `cluster.num_workers`. Tasks run at the same time if they fit."""
    train: TrainConfig
    """Fine-tuning: length, batches, rates."""
    adaptation: AdaptationConfig = AdaptationConfig()
    """Fine-tuning: the parameters that it changes."""

    def sources(self) -> dict[str, str]:
        """Return {setting: source of data}; the content of each source is part of the examples' id."""
        return {"source": self.source}


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
