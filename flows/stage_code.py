"""The modules that each stage's result depends on: their code is part of an artifact's id."""

from __future__ import annotations

from gpt2.pages.html import CODE as PAGE

CLEANING = ("gpt2.data.corpus", "gpt2.data.splits", "gpt2.data.readers", "gpt2.data.readers")
ENCODING = ("gpt2.data.shards", "gpt2.data.splits", "gpt2.data.tokenizer")
EXPOSING = ("gpt2.tasks.base.exposure", "gpt2.data.canaries")
TRAINING = (
    "gpt2.model.transformer",
    "gpt2.model.loss",
    "gpt2.model.adapters",
    "gpt2.training.optimizer",
    "gpt2.training.optimizer",
    "gpt2.training.hardware",
    "gpt2.data.batches",
    "gpt2.training.engine",
    "gpt2.training.loop",
    "gpt2.training.guard",
    "gpt2.model.heads",
    "gpt2.training_job",
    "gpt2.data.shards",
    "gpt2.data.splits",
    "cluster.engine.deepspeed_engine",
    "cluster.engine.skip_step",
    "cluster.engine.muon",
    "cluster.engine.deepspeed_engine",
)
REFRESHING = (*TRAINING, "gpt2.data.batches")
SEARCHING = (
    "gpt2.evaluation.contamination",
    "gpt2.data.near_duplicates",
    "gpt2.data.splits",
    "cluster.batch.evaluation",
)
REPORTING = (
    "gpt2.evaluation.contamination",
    "gpt2.evaluation.metrics",
    "gpt2.evaluation.unit_results",
    "gpt2.evaluation.significance",
    "gpt2.training.cost",
    "gpt2.evaluation.report",
    "gpt2.pages.markdown",
    *PAGE,
    "gpt2.pages:templates/report.html.j2",
    "gpt2.evaluation.plots",
    "gpt2.analysis.figures",
    "gpt2.model.transformer",
    "gpt2.model.loss",
    "gpt2.model.adapters",
)
NOT_OF_EXAMPLES = ("enabled", "source", "train", "adaptation", "distil")
"""What a task's settings say about training alone."""
REREADING = ("gpt2.tasks.base.report", "gpt2.data.tokenizer")
