"""The kinds of models: the pretrained one, and the downstream tasks. A new task is one file in `gpt2/tasks/`."""

from __future__ import annotations

from pydantic import Field

from gpt2.model.config import AdaptationConfig
from gpt2.settings import Settings, operational
from gpt2.training.config import TrainConfig


class TaskSettings(Settings):
    """What the settings of every task have; a task's own `Settings` class adds to it."""

    enabled: bool = True
    """Whether the pipeline runs this task."""
    source: str = Field(..., min_length=1)
    """The labelled data: a file, a directory or `sample:NAME`."""
    register_as: str | None = operational(None, pattern=r"^[a-z0-9][a-z0-9-]{0,60}$")
    """The registered model is gpt2- and this; without it, gpt2- and the task's name. Models of other data than the
    champion's have a name of their own, as it is on the champion's examples that the gate compares."""
    num_workers: int | None = operational(None, ge=1, le=4096)
    """Workers of this task's training; without it `cluster.num_workers`. Tasks that fit run at the same time."""
    train: TrainConfig
    """Fine-tuning: length, batches, rates."""
    adaptation: AdaptationConfig = AdaptationConfig()
    """Fine-tuning: which parameters it changes."""

    def sources(self) -> dict[str, str]:
        """Where the data are, by the setting that says so: the content of each is part of the examples' id."""
        return {"source": self.source}
