"""The modules that each stage's result depends on: a change in their code gives the stage's artifacts new ids.

They are the stage's own module and all that it imports, without those that are named harmless here with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from gpt2.store.code import depends_on, module_path

HARMLESS = {
    "gpt2": "the door of the package: it hands on what lies in its rooms",
    "gpt2.settings": "settings: their values are part of the key",
    "gpt2.store": "writes and finds artifacts, and computes nothing in them",
    "gpt2.data.samples": "fetches samples, and lets the hub be reached: the files' content is part of the key",
    "gpt2.training.journal": "records beside the result",
    "cluster.home": "says where things lie",
    "cluster.connect": "reaches Ray",
    "cluster.registry": "finds a version: its id is part of the key",
    "cluster.checkpoints": "a training that goes on ends with the same bits, as tests/cluster/test_chaos.py shows",
    "cluster.training.follow": "carries and describes what is told",
    "cluster.training.stopping": "stops a training, which goes on later with the same bits",
    "cluster.training.usage": "measures the machine",
    "flows.plan": "keys",
    "flows.stage_code": "this list",
    "flows.runs": "how a flow run behaves",
}
"""Module or room: why no result depends on it. Each `config` is harmless as `gpt2.settings` is."""
CANARIES = {
    "gpt2.data.canaries": "plants nothing unless canaries are asked for: counted then",
    "gpt2.tasks.base.exposure": "measures nothing unless canaries are planted: counted then",
}
AFTER_CLEANING = {
    "gpt2.data.shards": "encodes what was cleaned before",
    "gpt2.data.tokenizer": "encodes what was cleaned before",
}
TASKS = {
    "gpt2.tasks": "the code of the kind of model is added to the stage's",
    "gpt2.training.distillation": "teaches nothing unless a teacher is named: counted then",
}
MEASURING = dict.fromkeys(
    (
        "gpt2.evaluation.behavioural_tests",
        "gpt2.evaluation.contamination",
        "gpt2.evaluation.plots",
        "gpt2.evaluation.report",
        "gpt2.evaluation.significance",
        "gpt2.evaluation.unit_results",
        "gpt2.training.cost",
    ),
    "measures a model and changes none",
)
LEARNING = dict.fromkeys(
    ("gpt2.model", "gpt2.training", "gpt2.generation", "gpt2.weights"), "reads examples and makes none"
)
MONITOR = {
    "cluster.batch.tokenization": "spreads calls over workers",
    "gpt2.monitoring.index": "counts what was scored before",
    "gpt2.monitoring.posts": "reads posts, which are part of the key",
    "gpt2.monitoring.scored": "finds and merges batches",
    "gpt2.data.tables": "reads posts, which are part of the key",
}
"""What keeps the monitor's books: no post is scored again when it changes."""
COUNTING = {
    "gpt2.monitoring.alerts": "judges what was counted",
    "gpt2.evaluation.significance": "judges what was counted",
    "gpt2.monitoring.posts": "reads posts: those that were scored are counted",
    "gpt2.data.tables": "reads posts: those that were scored are counted",
    "gpt2.data.text": "finds topics when posts are scored",
}
REPORTED = dict.fromkeys(
    ("gpt2.data.text", "gpt2.evaluation.metrics", "gpt2.evaluation.significance"), "measures a report, and no post"
)
REPORTS = ("report", "page", "recommend")
"""Modules of a task's folder that read a model and change none: they count in its report alone."""


@dataclass(frozen=True)
class Stage:
    """The modules that do a stage's work, and which of those that they import are harmless to it beside `HARMLESS`."""

    entries: tuple[str, ...]
    harmless: Mapping[str, str] = field(default_factory=dict)

    def code(self) -> tuple[str, ...]:
        """Return the modules that count, sorted."""
        return depends_on(self.entries, {**HARMLESS, **self.harmless})


STAGES = {
    "clean": Stage(("cluster.batch.tokenization",), CANARIES | AFTER_CLEANING),
    "deduplicate": Stage(("gpt2.data.corpus",)),
    "learn tokenizer": Stage(("gpt2.data.tokenizer",)),
    "encode": Stage(("cluster.batch.tokenization",), CANARIES),
    "plant canaries": Stage(("gpt2.data.canaries",)),
    "train": Stage(("gpt2.training_job", "cluster.training.worker"), TASKS),
    "distil": Stage(("gpt2.training.distillation",)),
    "search for contamination": Stage(("cluster.batch.contamination",), CANARIES | TASKS),
    "report": Stage(("cluster.batch.evaluation",), CANARIES | TASKS),
    "report base": Stage(("gpt2.tasks.base.kind", "gpt2.tasks.base.report"), CANARIES),
    "measure exposure": Stage(("gpt2.tasks.base.exposure",)),
    "import weights": Stage(("gpt2.weights.published",)),
    "search settings": Stage(
        ("cluster.batch.search", "flows.jobs.search_plan"),
        {"flows.jobs.own_data_plan": "settings and keys", "flows.jobs.refresh_plan": "settings and keys"} | TASKS,
    ),
    "read posts": Stage(("gpt2.monitoring.posts",)),
    "merge scored posts": Stage(("gpt2.monitoring.scored",), MONITOR),
    "count posts": Stage(("gpt2.monitoring.history",), COUNTING),
    "score posts": Stage(("cluster.batch.scoring",), MONITOR | REPORTED),
    "index posts": Stage(
        ("flows.jobs.monitor",),
        {
            "cluster.batch.tokenization": "spreads calls over workers",
            "flows.jobs.retrain": "says in an event how a version was trained",
        },
    ),
    "recommend": Stage(
        ("flows.jobs.recommend", "gpt2.tasks.recommendation.predictor"),
        {"gpt2.tasks.recommendation.page": "drawn later, as an artifact of its own"},
    ),
    "write reasons": Stage(("gpt2.tasks.reasons.predictor",)),
    "draw recommendations": Stage(("gpt2.tasks.recommendation.page",)),
}


@cache
def stage_code(*stages: str) -> tuple[str, ...]:
    """Return the modules that count in the ids of what these stages make together, sorted."""
    return tuple(sorted({module for name in stages for module in STAGES[name].code()}))


def task_stages(task: str) -> dict[str, Stage]:
    """Return what a task adds to the code of its `examples`, its `model` and its `report`.

    A change in a task's report changes the id of the report and not that of the model, where the task is a folder.
    """
    place = f"gpt2.tasks.{task}"
    entry = f"{place}.task" if module_path(f"{place}.task") else place
    reports = {f"{place}.{name}": "reads the model and changes none" for name in REPORTS}
    learning = {**LEARNING, f"{place}.predictor": "reads the model"}
    return {
        "examples": Stage((entry,), MEASURING | reports | learning),
        "model": Stage((entry,), MEASURING | reports),
        "report": Stage((entry,)),
    }


@cache
def task_code(task: str, made: str, *stages: str) -> tuple[str, ...]:
    """Return what counts for a task's `examples`, `model` or `report`, with the modules of these stages, sorted."""
    return tuple(sorted({*task_stages(task)[made].code(), *stage_code(*stages)}))
