"""The settings that every task has."""

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
