"""The settings that every task has."""

from __future__ import annotations

from pydantic import Field

from gpt2.model.config import AdaptationConfig
from gpt2.settings import Settings, operational
from gpt2.training.config import TrainConfig


class TaskSettings(Settings):
    """Settings of every task; a task's own `Settings` class adds to them."""

    enabled: bool = True
    """Run this task in the pipeline."""
    source: str = Field(..., min_length=1)
    """The labelled data: a file, a directory or `sample:NAME`."""
    register_as: str | None = operational(None, pattern=r"^[a-z0-9][a-z0-9-]{0,60}$")
    """Suffix of the registered model's name after `gpt2-`; without it, the task's name. A model of other data needs its
    own name, since the gate compares models on the champion's examples."""
    num_workers: int | None = operational(None, ge=1, le=4096)
    """Number of workers of this task's training; without it `cluster.num_workers`. Tasks that fit run at the same
    time."""
    train: TrainConfig
    """Fine-tuning: length, batches, rates."""
    adaptation: AdaptationConfig = AdaptationConfig()
    """Fine-tuning: the parameters that it changes."""

    def sources(self) -> dict[str, str]:
        """Return the places of the data by the name of their setting; their content is part of the examples' id."""
        return {"source": self.source}
