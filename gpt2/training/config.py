"""The settings of a training: length, batches, optimizer, guard; of budget, distillation and refresh."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from gpt2.model.config import ModelShape
from gpt2.settings import Settings, operational


class OptimizerConfig(Settings):
    """The optimizer and its learning-rate schedule."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`adamw`: AdamW (Loshchilov and Hutter 2019). `muon`: Muon (Jordan et al. 2024) for the matrices in the blocks,
    and AdamW for all else. One learning rate serves both: Muon's updates are scaled to AdamW's size (Liu et al. 2025).
    """
    learning_rate: float = Field(6e-4, gt=0, le=1)
    """Peak learning rate."""
    embedding_rate: float = Field(1.0, gt=0, le=100)
    """Learning rate of the token embeddings, as a multiple of the others'."""
    final_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate at the last step, as a share of the peak."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After warm-up: `cosine` decay; `wsd` (warm-up, stable, linear decay); or `constant`."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    decay_share: float = Field(0.2, gt=0, le=1)
    """`wsd`: share of all steps spent in the final decay."""
    weight_decay: float = Field(0.1, ge=0, le=10)
    """Decoupled weight decay of matrices; biases, gains and position embeddings have none."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    epsilon: float = Field(1e-8, gt=0, le=1e-2)
    """AdamW's epsilon."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's decay of the average gradient."""
    clip: float = Field(1.0, ge=0, le=1e6)
    """Largest global gradient norm; larger gradients are scaled down to it. 0 switches clipping off."""


class GuardConfig(Settings):
    """Which steps are skipped, and when training rolls back."""

    max_norm_ratio: float = Field(50, ge=0, le=1e9)
    """A step is skipped if its gradient norm is above this many times the median of the last 100, or is not finite. 0
    skips only the latter."""
    max_bad_steps: int = Field(10, ge=1, le=10_000)
    """After this many skipped steps in a row, training rolls back to the last checkpoint and excludes their samples."""
    max_rollbacks: int = Field(3, ge=0, le=1000)
    """After this many rollbacks, training gives up at the next one."""


class TrainConfig(Settings):
    """One training run: its length, batches, precision, evaluations and checkpoints."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps; empty: `epochs` decides."""
    epochs: float | None = Field(None, gt=0, le=10_000)
    """Passes over the training split. If `steps` is set too, this is the limit that `steps` may not exceed (1 if
    empty)."""
    batch_size: int = Field(32, ge=1, le=1_000_000)
    """Global batch: samples per optimizer step, over all workers and accumulation."""
    micro_batch_size: int = operational(8, ge=1, le=65536)
    """Samples that one worker processes at a time; gradients accumulate up to the global batch."""
    context: int = Field(256, ge=8, le=65536)
    """Longest training sequence (unit: tokens)."""
    precision: Literal["auto", "bf16", "fp32", "fp16"] = "auto"
    """Arithmetic of the forward and backward pass; master weights are fp32. `auto` is bf16 on GPUs and on CPUs with
    native bf16 products, else fp32: other CPUs emulate bf16, ten times as slowly. fp16 needs a GPU."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its learning-rate schedule."""
    guard: GuardConfig = GuardConfig()
    """Protection against harmful steps."""
    activation_checkpointing: bool = operational(False)
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = operational(False)
    """Compile the model with `torch.compile` (needs a C++ compiler on CPU); costs 20 to 60 s at the start."""
    eval_every: int = operational(100, ge=1)
    """Steps between evaluations on the validation split."""
    eval_samples: int = operational(128, ge=1)
    """Validation samples per evaluation."""
    checkpoint_every: int = operational(100, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = operational(2, ge=1, le=1000)
    """Number of latest complete checkpoints kept during training; the one with the best validation loss is kept too."""
    archive_every: int | None = operational(None, ge=1)
    """Steps between checkpoints that are kept until the training ends; empty: none."""
    keep_state: bool = operational(False)
    """Keep the last checkpoint with the model: twelve bytes per parameter, for a later `continue_from`."""
    continue_from: str | None = Field(None, pattern="^[0-9a-f]{16}$")
    """Id of an earlier training of the same model on the same data, that kept its state (`keep_state`) or has not
    ended. This training resumes from its last checkpoint, with another length, learning rate or guard."""
    log_every: int = operational(10, ge=1)
    """Steps between lines of progress."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seeds initialisation, data order, dropout and sampling."""

    @model_validator(mode="after")
    def _relations(self):
        if self.steps is None and self.epochs is None:
            raise ValueError("neither steps nor epochs is set; set one of them")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by micro_batch_size={self.micro_batch_size}; "
                f"choose a micro batch that divides the global batch"
            )
        if self.steps is not None:
            self.check_warmup(self.steps)
        return self

    def check_warmup(self, steps: int) -> None:
        """Raise `ValueError` if the warm-up is longer than `steps` of training."""
        if self.optimizer.warmup_steps > steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} is longer than the training's {steps} steps; "
                f"set it to at most {steps}"
            )

    def total_steps(self, n_samples: int) -> int:
        """Return the optimizer steps for `n_samples` training samples; `ValueError` if they repeat data beyond
        `epochs`."""
        if n_samples < self.batch_size:
            raise ValueError(
                f"the training split has {n_samples} samples, fewer than one global batch (batch_size="
                f"{self.batch_size}); add data, shorten the context or lower batch_size"
            )
        if self.steps is None:
            assert self.epochs is not None
            steps = max(1, round(self.epochs * n_samples / self.batch_size))
            self.check_warmup(steps)
            return steps
        epochs = self.steps * self.batch_size / n_samples
        if epochs > (self.epochs or 1.0) + 1e-9:
            raise ValueError(
                f"steps={self.steps} x batch_size={self.batch_size} is {epochs:.2f} passes over {n_samples} samples, "
                f"but epochs={self.epochs or 1.0:g} are declared; lower steps or set epochs: {math.ceil(epochs)}"
            )
        return self.steps


class BudgetConfig(Settings):
    """Limits on the trainings of one run, and the price of their time."""

    max_seconds: float | None = Field(None, gt=0)
    """Seconds that the trainings of one run may last in total. Then they save a checkpoint and stop."""
    max_cost: float | None = Field(None, gt=0)
    """Money, at the prices below, that the trainings of one run may cost in total. Then they save a checkpoint and
    stop."""
    price_per_cpu_hour: float = Field(0, ge=0)
    """Price of a reserved CPU core, per hour."""
    price_per_gpu_hour: float = Field(0, ge=0)
    """Price of a reserved GPU, per hour."""
    currency: str = Field("EUR", min_length=1, max_length=8)
    """Currency of prices and costs."""

    @model_validator(mode="after")
    def _cost_needs_a_price(self):
        if self.max_cost is not None and not self.price_per_cpu_hour and not self.price_per_gpu_hour:
            raise ValueError(f"max_cost={self.max_cost:g} needs a price; set price_per_cpu_hour or price_per_gpu_hour")
        return self

    def price(self, cpu_seconds: float, gpu_seconds: float) -> float:
        """Return the price of reserved core seconds and GPU seconds."""
        return (cpu_seconds * self.price_per_cpu_hour + gpu_seconds * self.price_per_gpu_hour) / 3600

    @property
    def priced(self) -> bool:
        return self.price_per_cpu_hour > 0 or self.price_per_gpu_hour > 0


class DistilConfig(Settings):
    """Distillation: the teacher and the student."""

    teacher: str = Field(..., min_length=1)
    """The fine-tuned model of the same task that teaches: models:/NAME@ALIAS, models:/NAME/VERSION, or the id of its
    artifact."""
    student: ModelShape
    """The student's shape; its vocabulary is the tokenizer's."""
    temperature: float = Field(2.0, gt=0, le=100)
    """Divides both models' logits before they are compared: a higher temperature gives unlikely classes more weight."""
    weight: float = Field(0.5, ge=0, le=1)
    """Share of the teacher's loss in the total; the rest is the labels' loss. 0 learns from labels alone."""
    layers_from_teacher: bool = False
    """Start the student from the teacher's embeddings and some of its blocks; otherwise from random weights."""


class RefreshConfig(Settings):
    """Continual pretraining of the champion on documents that are new to it, mixed with some that it has seen.

    The optimizer starts anew, with its own warm-up and decay. Together, re-warming, re-decaying and replay keep a model
    from forgetting (Ibrahim et al. 2024, "Simple and Scalable Strategies to Continually Pre-train Large Language
    Models"). All else is as in `pretrain:`.
    """

    replay_share: float = Field(0.5, ge=0, le=0.95)
    """Share of the samples that replay old text; the last batch is also filled up with old text."""
    epochs: int = Field(1, ge=1, le=100)
    """Passes over the new text: every new sample is read exactly this many times."""
    learning_rate: float | None = Field(None, gt=0, le=1)
    """Peak learning rate; empty: half of `pretrain.optimizer.learning_rate`."""
    warmup_share: float = Field(0.1, ge=0, le=1)
    """Share of the steps that are warm-up."""
    min_new_documents: int = Field(100, ge=1)
    """With fewer new documents nothing is done: they wait for more."""

    def steps(self, new_samples: int, batch_size: int) -> int:
        """Return the optimizer steps that read `new_samples` `epochs` times at their share of the batches; at least
        one."""
        wanted = self.epochs * new_samples / (1 - self.replay_share) / batch_size
        return max(1, math.ceil(wanted - 1e-9))

    def training(self, pretrain: TrainConfig, new_samples: int) -> TrainConfig:
        """Return the training settings of a refresh with `new_samples` samples of new text."""
        steps = self.steps(new_samples, pretrain.batch_size)
        optimizer = {
            **pretrain.optimizer.model_dump(),
            "learning_rate": self.learning_rate or pretrain.optimizer.learning_rate / 2,
            "warmup_steps": round(self.warmup_share * steps),
        }
        changes = {"steps": steps, "epochs": None, "continue_from": None, "optimizer": optimizer}
        return TrainConfig.model_validate({**pretrain.model_dump(), **changes})
