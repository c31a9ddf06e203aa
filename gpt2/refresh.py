"""The settings of a refresh: how a trained model goes on with new text and does not forget the old."""

from __future__ import annotations

import math

from pydantic import Field

from gpt2.config import Settings, TrainConfig


class RefreshConfig(Settings):
    """Pretraining goes on from the champion with documents that it has not seen, mixed with some that it has.

    The optimizer begins anew, with a warm-up and a decay of its own; re-warming, re-decaying and replay together are
    what keeps a model from forgetting (Ibrahim et al. 2024, "Simple and Scalable Strategies to Continually Pre-train
    Large Language Models"). All else is as in `pretrain:`.
    """

    replay_share: float = Field(0.5, ge=0, le=0.95)
    """Share of the samples that are old text, read again; the last batch is filled up with such, too."""
    epochs: int = Field(1, ge=1, le=100)
    """Passes over the new text: every new sample is read exactly so often."""
    learning_rate: float | None = Field(None, gt=0, le=1)
    """Peak learning rate; without it, half of `pretrain.optimizer.learning_rate`."""
    warmup_share: float = Field(0.1, ge=0, le=1)
    """Share of the steps that warm up."""
    min_new_documents: int = Field(100, ge=1)
    """With fewer new documents than this nothing is done: they wait for more."""

    def steps(self, new_samples: int, batch_size: int) -> int:
        """Optimizer steps in which `new_samples` are read `epochs` times and make up their share; at least one."""
        wanted = self.epochs * new_samples / (1 - self.replay_share) / batch_size
        return max(1, math.ceil(wanted - 1e-9))

    def training(self, pretrain: TrainConfig, new_samples: int) -> TrainConfig:
        """The training of a refresh with `new_samples` samples of new text."""
        steps = self.steps(new_samples, pretrain.batch_size)
        optimizer = {
            **pretrain.optimizer.model_dump(),
            "learning_rate": self.learning_rate or pretrain.optimizer.learning_rate / 2,
            "warmup_steps": round(self.warmup_share * steps),
        }
        changes = {"steps": steps, "epochs": None, "continue_from": None, "optimizer": optimizer}
        return TrainConfig.model_validate({**pretrain.model_dump(), **changes})
