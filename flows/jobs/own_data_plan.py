"""The settings of `train-classifier` and `train-recommender`, and the pipeline's settings and keys that follow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from cluster.home import store
from cluster.registry.lineage import Lineage, registered_lineage
from flows.config import Gate, InvalidConfig, PipelineConfig, Preset, merged, parse_change, resolve, validate
from flows.jobs.refresh_plan import like
from flows.plan import (
    ExistingKey,
    ModelKeys,
    Plan,
    absolute_place,
    base_keys,
    make_plan,
    registered_before,
    task_identity,
    task_keys,
)
from gpt2.data.samples import PREFIX
from gpt2.settings import Settings
from gpt2.store.artifact import Artifact
from gpt2.store.model_files import BASE_NAME
from gpt2.tasks.recommendation.config import CatalogueFiles
from gpt2.tasks.sentiment.config import LabelledFile
from gpt2.tasks.task import registered_name, tasks
from gpt2.training.config import TrainConfig

CHAMPION = "models:/gpt2-base@champion"
FEW_STEPS = 100
"""Batches of a small file are made smaller until there are this many steps."""
SMALLEST_BATCH = 8
LATER: Any = {"position": 90}
LAST: Any = {"position": 100}
"""Places in the form: files and their columns, then how it is trained, then settings that few change."""
TUNED = ("train", "adaptation")
"""The sections of a task that a search changes."""


class OwnDataConfig(Settings):
    """Settings of a training on your own data. A subclass adds how the data are read."""

    task: ClassVar[str]
    """The task that is fine-tuned. Its settings that the subclass shares are passed on."""
    flow: ClassVar[str]
    """The name of its flow and command."""
    source: str = Field(..., min_length=1)
    """The file with the data."""
    name: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9-]{0,60}$")
    """The model is registered as gpt2-NAME; empty: NAME is made from the file's name. A task's own name is reserved for
    the model of the sample."""
    base: str = Field(CHAMPION, min_length=1, json_schema_extra=LATER)
    """The pretrained model to fine-tune: models:/gpt2-base@ALIAS or models:/gpt2-base/VERSION, trained in this home. If
    there is no champion yet, one is pretrained first with the preset."""
    preset: Preset = Field("laptop", json_schema_extra=LATER)
    """The settings to start from. Those of the model and its tokenizer are taken from the pretrained model."""
    passes: float = Field(3.0, gt=0, le=1000, json_schema_extra=LATER)
    """Number of passes over the training split."""
    max_steps: int = Field(600, ge=1, json_schema_extra=LATER)
    """Most steps, regardless of the passes. 600 steps take about 7 minutes on two cores with the preset `laptop`."""
    tasks: dict[str, Any] = Field(default={}, json_schema_extra=LAST)
    """Fine-tuning settings found by a search with the same preset: the section `tasks` of its best.yaml, which the
    search's page shows in this format. Number of steps and batch size still follow from the size of the data."""
    gate: Gate = Field(Gate(), json_schema_extra=LAST)
    """Conditions under which the model becomes the champion. Empty fields keep the preset's value."""
    changes: list[str] = Field(default=[], json_schema_extra=LAST)
    """Any other settings of the pipeline, each in the form pretrain.steps=500 or tasks.sentiment.train.context=64."""

    def registered_as(self) -> str:
        """Return the registered name without `gpt2-`; raises `InvalidConfig` if it is the name of another task's
        model."""
        if self.name is None:
            stem = Path(self.source.removeprefix(PREFIX)).name.partition(".")[0].lower()
            name = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:60].rstrip("-")
            if name and name not in ("base", *tasks()):
                return name
            raise InvalidConfig(f"name: can't be made from {self.source!r}; set one: --name mine")
        if self.name in {"base", *tasks()} - {self.task}:
            raise InvalidConfig(f"name = {self.name!r}: gpt2-{self.name} is another kind of model; choose another name")
        return self.name

    def request(self) -> dict[str, Any]:
        """Return {flow, config} with absolute paths, from which the same training can be requested again."""
        values = self.model_dump(mode="json") | {"name": self.registered_as()}
        places = {what: absolute_place(values[what]) for what in ("source", "interactions") if what in values}
        return {"flow": self.flow, "config": values | places}

    @field_validator("tasks")
    @classmethod
    def _of_fine_tuning(cls, value: dict[str, Any]) -> dict[str, Any]:
        if others := ", ".join(sorted(set(value) - {cls.task})):
            raise ValueError(f"these are settings of {others}; give the settings that gpt2 search {cls.task} found")
        for name, section in value.items():
            if not isinstance(section, dict) or (other := sorted(set(section) - set(TUNED))):
                what = ", ".join(other) if isinstance(section, dict) else repr(section)
                raise ValueError(f"{name} has {what}; give only {' and '.join(TUNED)}, as a search found them")
        return value


class ClassifierConfig(LabelledFile, OwnDataConfig):
    """Settings of a classifier trained on a file of labelled texts."""

    task: ClassVar[str] = "sentiment"
    flow: ClassVar[str] = "train-classifier"
    source: str = Field(..., min_length=1)
    """A .csv, .jsonl or .parquet file with a text and a label per row, and optionally a time, a topic and a weight."""


class RecommenderConfig(CatalogueFiles, OwnDataConfig):
    """Settings of a recommender trained on a file of items and a file of interactions."""

    task: ClassVar[str] = "recommendation"
    flow: ClassVar[str] = "train-recommender"
    source: str = Field(..., min_length=1)
    """The file of items (.csv, .jsonl, .parquet): id, text, optionally a title; all other columns are attributes."""
    interactions: str = Field(..., min_length=1)
    """The file of interactions: user, item, time, optionally a weight such as a rating."""


@dataclass(frozen=True)
class OwnDataPlan:
    """The plan of a training on your own data: the pipeline's settings and the keys of all artifacts."""

    config: OwnDataConfig
    base: Lineage | None
    """The pretrained model to fine-tune; None if one is pretrained first."""
    samples: int | None = None
    """Number of training samples, which sets the steps; None while there are no examples."""

    @classmethod
    def of(cls, config: OwnDataConfig) -> OwnDataPlan:
        """Return the plan for the base model in the registry; raises `ValueError` if it is not in this home."""
        return cls(config, pretrained(config.base))

    @cached_property
    def settings(self) -> PipelineConfig:
        """The pipeline's settings. They have the right number of steps only if `samples` is known."""
        config, base, name = self.config, self.base, self.config.task
        others = {other: {"enabled": False} for other in tasks() if other != name}
        known = tasks()[name].Settings.model_fields
        given = {field: getattr(config, field) for field in type(config).model_fields if field in known}
        mine = {**given, "enabled": True, "register_as": config.registered_as(), **config.tasks.get(name, {})}
        gate = config.gate.model_dump(mode="json")
        values = merged(resolve(config.preset).model_dump(), {"tasks": {**others, name: mine}, "gate": gate})
        values = fitting(values, name, base)
        settings = validate(values)
        if self.samples is not None:
            train, workers = getattr(settings.tasks, name).train, settings.task_cluster(name).num_workers
            values = merged(values, {"tasks": {name: {"train": length(config, train, self.samples, workers)}}})
        for change in config.changes:
            values = merged(values, parse_change(change))
        settings = validate(values)
        return like(base, settings) if base is not None else settings

    @cached_property
    def plan(self) -> Plan:
        """The keys of all artifacts; raises `InvalidConfig` if a file can't be read."""
        return plan_of(self.settings, self.base, self.config.request())

    @property
    def keys(self) -> ModelKeys:
        """Return the keys of the task's artifacts."""
        return self.plan.tasks[self.config.task]

    @property
    def identity(self) -> str:
        """Return an id that is the same for runs that would make the same model."""
        return task_identity(self.config.task, self.plan)

    def with_examples(self, examples: Artifact) -> OwnDataPlan:
        """Return the plan with the number of training samples in `examples`."""
        context = getattr(self.settings.tasks, self.config.task).train.context
        count = tasks()[self.config.task].samples(examples.path, examples.info, context)
        return OwnDataPlan(self.config, self.base, count)

    def complete(self) -> OwnDataPlan | None:
        """Return the plan with the examples in the store; None if they are not made yet."""
        examples = store().find(self.keys.data)
        return self.with_examples(examples) if examples else None

    def registered(self) -> list[dict[str, Any]] | None:
        """Return the registry's rows if there is nothing left to do, else None. Starts nothing."""
        complete = self.complete()
        return registered_before(complete.plan) if complete else None

    def nothing(self) -> str | None:
        """Return why there is nothing to do; None if there is something to do. Starts nothing."""
        return "every stage was done before." if self.registered() else None


def pretrained(address: str) -> Lineage | None:
    """Return the lineage of the pretrained model at an address; None if the registry has no champion yet.

    Raises `ValueError` if it is not in this home.
    """
    from cluster.registry import download, versions  # MLflow

    name = registered_name(BASE_NAME)
    if address == CHAMPION and versions.by_alias(name, versions.CHAMPION) is None:
        return None
    version = download.find(address)
    if version.name != name:
        raise InvalidConfig(f"base = {address!r}: is not a pretrained model; give models:/{name}/VERSION")
    return registered_lineage(version)


def fitting(values: dict[str, Any], name: str, base: Lineage | None) -> dict[str, Any]:
    """Return the settings with contexts that are at most the pretrained model's number of positions."""
    if base is None:
        return values
    room = base.model.n_positions
    shorter = {"context": min(room, values["tasks"][name]["train"]["context"])}
    own = {"pretrain": {"context": min(room, values["pretrain"]["context"])}, "tasks": {name: {"train": shorter}}}
    return merged(values, own)


def length(config: OwnDataConfig, train: TrainConfig, examples: int, workers: int) -> dict[str, Any]:
    """Return steps and batch sizes for the size of the training split: `passes` over it, in smaller batches if it is
    small."""
    batch = train.batch_size
    while batch % (2 * workers) == 0 and batch > SMALLEST_BATCH and config.passes * examples < FEW_STEPS * batch:
        batch //= 2
    steps = max(1, min(config.max_steps, int(config.passes * examples / batch)))
    return {
        "steps": steps,
        "epochs": max(config.passes, 1.0),
        "batch_size": batch,
        "micro_batch_size": min(train.micro_batch_size, batch // workers),
        "optimizer": {"warmup_steps": min(train.optimizer.warmup_steps, steps // 5)},
    }


def plan_of(settings: PipelineConfig, base: Lineage | None, asked: Mapping[str, Any] | None = None) -> Plan:
    """Return the keys of all artifacts, where those of the pretrained model exist. `asked` is kept with the version."""
    if base is None:
        return make_plan(settings)
    corpus = ExistingKey("corpus", known=base.corpora[-1].id)
    tokenizer = ExistingKey("tokenizer", known=base.tokenizer.id)
    tokens, model = ExistingKey("tokens", known=base.tokens[-1].id), ExistingKey("base", known=base.base.id)
    pretrained = base_keys(model, tokens, settings.canaries, settings.evaluated_tokens())
    own = {name: task_keys(name, settings, model, tokenizer, tokens) for name in settings.task_settings()}
    tags = {"gpt2.base_version": f"gpt2-base/{base.version}", **base.tags}
    return Plan((), (), corpus, tokenizer, tokens, pretrained, own, tags, asked or {})
