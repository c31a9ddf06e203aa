"""The settings of the task `support`."""

from __future__ import annotations

from pydantic import Field

from gpt2.data.config import FileForm
from gpt2.settings import operational
from gpt2.tasks.config import TaskSettings
from gpt2.training.config import OptimizerConfig, TrainConfig


class SupportSettings(FileForm, TaskSettings):
    """Customer service: answers to questions, found in a knowledge file. Off unless `enabled` is set."""

    enabled: bool = False
    """Run this task in the pipeline."""
    source: str = Field("sample:support", min_length=1)
    """The knowledge file, with a question and an answer per row, or a folder, a glob or an fsspec URL of such files
    (.csv, .tsv, .jsonl, .parquet); or `sample:support`."""
    num_workers: int | None = operational(1, ge=1, le=4096)
    """Number of workers of this task's training; one is enough for a knowledge file written by hand."""
    question_field: str = Field("question", min_length=1)
    """The column of the questions."""
    answer_field: str = Field("answer", min_length=1)
    """The column of the answers."""
    validation_share: float = Field(0.1, gt=0, le=0.4)
    """Share of the questions in the validation split, which monitors training."""
    test_share: float = Field(0.25, gt=0, le=0.5)
    """Share of the questions in the test split, which the report uses."""
    negatives: int = Field(64, ge=1, le=4096)
    """Number of wrong answers against which a question's right one is trained at each step; a batch shares them."""
    reply_weight: float = Field(0.2, ge=0, le=10)
    """Weight of the reply's next-token loss relative to the retrieval loss."""
    train: TrainConfig = TrainConfig(
        epochs=10,
        batch_size=32,
        micro_batch_size=16,
        context=128,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, schedule="cosine", final_ratio=0.0),
        eval_every=25,
        eval_samples=128,
        checkpoint_every=50,
        log_every=10,
    )
    """Fine-tuning: length, batches, rates. The context holds question, known answer and reply."""
