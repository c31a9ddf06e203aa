"""Customer service: the best answer of a knowledge file to a question, and a reply written from it.

Answers are found by embeddings and by words (BM25) together; how much each counts is fitted on the validation split, as
DPR's authors did (Karpukhin et al. 2020), here by likelihood: a score is the probability that the answer is right.
"""

from __future__ import annotations

from pydantic import Field

from gpt2.settings import operational
from gpt2.tasks.config import TaskSettings
from gpt2.training.config import OptimizerConfig, TrainConfig


class SupportSettings(TaskSettings):
    """Customer-service answers: questions with their answers. Off unless `enabled` is set."""

    enabled: bool = False
    """Whether the pipeline runs this task."""
    source: str = Field("sample:support", min_length=1)
    """The knowledge file, .csv, .jsonl or .parquet, with a question and an answer per row; or `sample:support`."""
    num_workers: int | None = operational(1, ge=1, le=4096)
    """Workers of this task's training: one is enough for what people write by hand."""
    question_field: str = Field("question", min_length=1)
    """The column of the questions."""
    answer_field: str = Field("answer", min_length=1)
    """The column of the answers."""
    validation_share: float = Field(0.1, gt=0, le=0.4)
    """Share of the questions that training is watched on."""
    test_share: float = Field(0.25, gt=0, le=0.5)
    """Share of the questions that the report is made from."""
    negatives: int = Field(64, ge=1, le=4096)
    """Wrong answers that a question's right one is told from at each step, the same for all questions of a batch."""
    reply_weight: float = Field(0.2, ge=0, le=10)
    """Weight of the reply's next-token loss beside the retrieval's."""
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
