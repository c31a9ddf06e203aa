"""The settings of a search, its trials, drawn from a space and checked against the schema, and the best as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, field_validator

from cluster.home import store
from cluster.registry.lineage import Lineage
from flows.config import (
    InvalidConfig,
    PipelineConfig,
    did_you_mean,
    merged,
    parse_change,
    preset_names,
    resolve,
    validate,
)
from flows.jobs.own_data_plan import CHAMPION, fitting, plan_of, pretrained
from flows.jobs.refresh_plan import like
from flows.plan import Plan
from flows.stage_code import task_code
from gpt2 import search
from gpt2 import search as gpt2_search
from gpt2.model.config import ADAPTATION_FIELDS, AdaptationConfig
from gpt2.search import WORST, Curve
from gpt2.settings import Settings, operational
from gpt2.store.artifact import Key
from gpt2.tasks.task import task as task_of
from gpt2.tasks.task import tasks
from gpt2.training.config import TrainConfig

MISSES = 100
"""After this many draws without a new candidate, the space counts as exhausted."""
ELSEWHERE = {
    "train.steps": "all candidates train equally long: set max_steps",
    "train.epochs": "all candidates train equally long: set max_steps",
    "train.continue_from": "candidates begin with the pretrained model",
    "train.seed": "a lucky seed is no better setting; leave it out",
}


@dataclass(frozen=True)
class Trial:
    """A candidate: settings to try."""

    drawn: dict[str, Any]
    """The drawn values that are read, as {path: value}; {} for the preset's own settings."""
    settings: PipelineConfig
    task: str

    @property
    def train(self) -> TrainConfig:
        return getattr(self.settings.tasks, self.task).train

    @property
    def adaptation(self) -> AdaptationConfig:
        return getattr(self.settings.tasks, self.task).adaptation

    def identity(self) -> dict[str, Any]:
        """Return all settings that its result depends on."""
        return {"train": self.train.identity(), "adaptation": self.adaptation.identity()}


def candidates(settings: PipelineConfig, name: str, given: Mapping[str, Any], trials: int, seed: int) -> list[Trial]:
    """Return the settings as they are, and others drawn from the space (`default_space` if none is given), no two
    alike.

    There are `trials` of them, or as many as the space has. Raises `InvalidConfig` for an invalid space.
    """
    dimensions = search.dimensions(given) if given else default_space(settings, name)
    whole = check(dimensions, settings, name)
    drawn = [Trial({}, settings, name)]
    seen = [drawn[0].identity()]
    number = missed = 0
    while len(drawn) < trials and missed < MISSES:
        candidate = changed(settings, name, search.draw(dimensions, whole, seed, number))
        number, missed = number + 1, missed + 1
        if candidate.identity() not in seen:
            drawn.append(candidate)
            seen.append(candidate.identity())
            missed = 0
    if len(drawn) < 2:
        raise InvalidConfig("space: has no settings but the preset's own; give other choices, or ranges")
    return drawn


def default_space(settings: PipelineConfig, name: str) -> dict[str, search.Dimension]:
    """Return the default space: the settings that matter most, around their values.

    Without the batch size, because in equally many steps a larger batch sees more samples. Warm-up ends before the
    first evaluation, so that no candidate is judged during it.
    """
    mine = getattr(settings.tasks, name)
    optimizer, rate = mine.train.optimizer, mine.train.optimizer.learning_rate
    space: dict[str, search.Dimension] = {
        "train.optimizer.learning_rate": search.Range(low=rate / 10, high=min(1.0, rate * 10), log=True),
        "train.optimizer.weight_decay": sorted({0.0, 0.01, 0.1, optimizer.weight_decay}),
        "train.optimizer.warmup_steps": sorted({0, mine.train.steps // 20, mine.train.steps // 10}),
    }
    if mine.adaptation.kind == "full":  # otherwise the embeddings are frozen
        space["train.optimizer.embedding_rate"] = search.Range(low=0.3, high=10, log=True)
    if mine.adaptation.kind == "lora":
        rank = mine.adaptation.rank
        space["adaptation.rank"] = sorted({max(1, rank // 2), rank, min(settings.model.n_embd, 2 * rank)})
        space["adaptation.alpha"] = search.Range(low=4, high=64, log=True)
    if mine.adaptation.kind == "prefix":
        space["adaptation.prefix_length"] = sorted({max(1, mine.adaptation.prefix_length // 2), 16, 32})
    return space


def check(dimensions: Mapping[str, search.Dimension], settings: PipelineConfig, name: str) -> set[str]:
    """Check the dimensions; return the paths of integers. Raises `InvalidConfig` for unknown settings or values."""
    whole = set()
    for path, dimension in dimensions.items():
        kind = type_at(path, name)
        if isinstance(dimension, search.Range) and kind not in (int, float):
            raise InvalidConfig(f"space: tasks.{name}.{path} is no number and has no range; give a list of choices")
        if kind is int:
            whole.add(path)
        of = reader(path)
        kinds = dimensions.get("adaptation.kind", [getattr(settings.tasks, name).adaptation.kind])
        if of and of not in (kinds if isinstance(kinds, list) else []):
            raise InvalidConfig(
                f"space: tasks.{name}.{path} is read with kind={of} only; add adaptation.kind: [{of}] to the space"
            )
        for value in search.ends(dimension, kind is int):
            changed(settings, name, {path: value} | ({"adaptation.kind": of} if of else {}))
    return whole


def type_at(path: str, name: str) -> Any:
    """Return the type of a setting of a task; raises `InvalidConfig` if it can't be searched."""
    model: Any = task_of(name).Settings
    where = f"space: tasks.{name}.{path}"
    if path.partition(".")[0] not in ("train", "adaptation"):
        raise InvalidConfig(f"{where} is no setting of fine-tuning; give paths such as train.optimizer.learning_rate")
    if path in ELSEWHERE:
        raise InvalidConfig(f"{where} is not searched: {ELSEWHERE[path]}")
    for part in path.split("."):
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            raise InvalidConfig(f"{where}: there is no such setting{did_you_mean(part, list(fields))}")
        extra, model = fields[part].json_schema_extra, fields[part].annotation
        if isinstance(extra, dict) and extra.get("identity") is False:
            raise InvalidConfig(f"{where} does not change what is learned; leave it out")
    if isinstance(model, type) and issubclass(model, BaseModel):
        raise InvalidConfig(f"{where} is a section; name a setting in it, of {', '.join(model.model_fields)}")
    known = [kind for kind in get_args(model) if kind is not NoneType]
    return known[0] if len(known) == 1 and NoneType in get_args(model) else model


def reader(path: str) -> str | None:
    """Return the kind of adaptation that reads a setting; None if all kinds do."""
    section, _, field = path.partition(".")
    if section != "adaptation":
        return None
    return next((kind for kind, fields in ADAPTATION_FIELDS.items() if field in fields), None)


def changed(settings: PipelineConfig, name: str, drawn: Mapping[str, Any]) -> Trial:
    """Return a candidate with the drawn values, except those that its kind of adaptation does not read.

    Its micro-batch size is made to divide the batch.
    """
    values = settings.model_dump()
    before = values["tasks"][name]["adaptation"]
    kind = drawn.get("adaptation.kind", before["kind"])
    read = {path: value for path, value in drawn.items() if reader(path) in (None, kind)}
    if isinstance(kind, str) and kind in ADAPTATION_FIELDS:
        values["tasks"][name]["adaptation"] = {k: before[k] for k in ("kind", *ADAPTATION_FIELDS[kind])}
    for path, value in read.items():
        parts = path.split(".")
        change: Any = value
        for part in reversed(["tasks", name, *parts]):
            change = {part: change}
        values = merged(values, change)
    train, workers = values["tasks"][name]["train"], settings.task_cluster(name).num_workers
    batch = train["batch_size"]
    if "train.batch_size" in read and isinstance(batch, int) and batch > 0 and batch % workers == 0:
        each = batch // workers
        train["micro_batch_size"] = next(m for m in range(min(each, train["micro_batch_size"]), 0, -1) if each % m == 0)
    return Trial(read, validate(values), name)


REDUCTION = 3
"""One of this many candidates goes on, after a ninth and a third of all steps (Li et al. 2020 take 4)."""
COMMANDS = {"sentiment": "train-classifier FILE", "recommendation": "train-recommender ITEMS INTERACTIONS"}
"""Other commands that take the best settings of a task."""
if TYPE_CHECKING:
    Preset = str
    TaskName = str
else:
    Preset = Literal[tuple(preset_names())]
    TaskName = Literal[tuple(tasks())]


class SearchConfig(Settings):
    """Settings of a search for better fine-tuning settings of a task, by its validation loss."""

    task: TaskName
    """The task whose fine-tuning settings are searched."""
    base: str = Field(CHAMPION, min_length=1)
    """The pretrained model to fine-tune: models:/gpt2-base@ALIAS or models:/gpt2-base/VERSION, trained in this home."""
    preset: Preset = "laptop"
    """The settings that candidates change; unchanged they are the first candidate. Those of the model and its tokenizer
    are taken from the pretrained model."""
    trials: int = Field(12, ge=2, le=1000)
    """Number of candidates, at most as many as the space has."""
    max_steps: int | None = Field(None, ge=1)
    """Steps of a candidate that is not stopped early; empty: the preset's number."""
    space: dict[str, Any] = Field(default={})
    """Paths under the task, in train and adaptation, each with choices or a range, such as
    {"train.batch_size": [16, 32],
    "train.optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": true}}. Empty: learning rates, warm-up and
    weight decay around the preset's, and the settings of its adaptation; dropout (adaptation.model_dropout, or dropout
    of LoRA) only if it is named. Candidates train for equally many steps, so a larger batch sees more samples."""
    eval_samples: int = Field(1000, ge=1)
    """Validation samples of each of about nine evaluations, by which candidates are stopped or chosen."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seed of the draws from the space. The candidates' trainings use the preset's seed."""
    parallel: int | None = operational(None, ge=1, le=4096)
    """Candidates at a time; empty: as many as there are CPU cores or GPUs. With 1 the result is reproducible."""
    changes: list[str] = Field(default=[])
    """Any other settings of the pipeline, each in the form tasks.sentiment.source=posts.csv."""

    @field_validator("space", mode="before")
    @classmethod
    def _is_a_space(cls, value: Any) -> dict[str, Any]:
        return gpt2_search.plain(gpt2_search.dimensions(value))


@dataclass(frozen=True)
class SearchPlan:
    """The plan of a search: all that is decided before anything starts."""

    config: SearchConfig
    candidates: list[Trial]
    plan: Plan
    key: Key

    @classmethod
    def of(cls, config: SearchConfig) -> SearchPlan:
        """Return the plan; raises `ValueError` for wrong settings, or if there is no pretrained model."""
        settings_of(config, None)  # checks the settings before the registry is read
        base = pretrained(config.base)
        if base is None:
            raise InvalidConfig(
                f"base = {config.base!r}: there is no such model yet; make one first: gpt2 run --preset {config.preset}"
            )
        settings = settings_of(config, base)
        drawn = candidates(settings, config.task, config.space, config.trials, config.seed)
        plan = plan_of(settings, base)
        keys = plan.tasks[config.task]
        spec = {
            "task": config.task,
            "candidates": [candidate.identity() for candidate in drawn],
            "eval_samples": config.eval_samples,
            "reduction": REDUCTION,
            "preset": {"name": config.preset, **Trial({}, resolve(config.preset), config.task).identity()},
        }
        inputs = {"base": plan.base.id, "examples": keys.data.id, "tokenizer": plan.tokenizer.id}
        code = task_code(config.task, "model", "train", "search settings")
        return cls(config, drawn, plan, Key("search", spec, inputs, code))

    @property
    def identity(self) -> str:
        """Return an id that is the same for equal searches."""
        return f"search-{self.key.id}"

    def nothing(self) -> str | None:
        """Return why there is nothing to do; None if there is something to do."""
        made = store().find(self.key)
        return f"the search was done before; {made.file('best.yaml')}" if made else None

    @property
    def steps(self) -> int:
        """Return the steps of a candidate that is not stopped early."""
        steps = self.candidates[0].train.steps
        assert steps is not None
        return steps


def settings_of(config: SearchConfig, base: Lineage | None) -> PipelineConfig:
    """Return the preset's settings for this task alone, with `max_steps` and the pretrained model's shape."""
    name = config.task
    values = resolve(config.preset).model_dump()
    values = merged(values, {"tasks": {other: {"enabled": other == name} for other in tasks()}})
    values = fitting(values, name, base)
    train = values["tasks"][name]["train"]
    if config.max_steps is not None:
        warmup = min(train["optimizer"]["warmup_steps"], config.max_steps // 5)
        train = merged(train, {"steps": config.max_steps, "optimizer": {"warmup_steps": warmup}})
        values["tasks"][name]["train"] = train
    for change in config.changes:
        values = merged(values, parse_change(change))
    settings = validate(values)
    mine = getattr(settings.tasks, name)
    if not mine.enabled:
        raise InvalidConfig(f"tasks.{name}.enabled = False: there is nothing to search; leave it out")
    if mine.train.steps is None:
        raise InvalidConfig(f"max_steps: the preset {config.preset} does not say how many steps; set it")
    if getattr(mine, "distil", None):
        raise InvalidConfig(f"tasks.{name}.distil: a distillation can't be searched; leave it out")
    return like(base, settings) if base is not None else settings


def rows(search: SearchPlan, curves: list[Curve]) -> list[dict[str, Any]]:
    """Return a row for each candidate, in order: its drawn settings, its last step and validation loss, its state."""
    results = []
    for number, (candidate, curve) in enumerate(zip(search.candidates, curves, strict=True)):
        step, loss = curve.points[-1] if curve.points else (0, None)
        state = "failed" if curve.reason else "ended" if curve.ended else "stopped early"
        bad = loss is None or loss >= WORST
        points = [(s, value) for s, value in curve.points if value < WORST]
        results.append(
            {"candidate": number, "settings": candidate.drawn, "step": step, "validation_loss": None if bad else loss,
             "state": state, "reason": curve.reason, "curve": points}
        )  # fmt: skip
    return results


def best_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row with the lowest validation loss at the last step; raises `ValueError` if none is finite."""
    ended = [row for row in results if row["state"] == "ended" and row["validation_loss"] is not None]
    if not ended:
        raise ValueError("no candidate finished with a finite loss; give a space of lower learning rates")
    return min(ended, key=lambda row: row["validation_loss"])


def as_settings(search: SearchPlan, row: Mapping[str, Any]) -> str:
    """Return YAML with the candidate's settings that differ from the preset."""
    name, candidate = search.config.task, search.candidates[row["candidate"]]
    before = getattr(resolve(search.config.preset).tasks, name).model_dump(mode="json")
    after = getattr(candidate.settings.tasks, name).model_dump(mode="json")
    changes = {part: change for part in ("train", "adaptation") if (change := other(before[part], after[part]))}
    text = (
        f"# The best of {len(search.candidates)} candidates of search/{search.key.id}, by validation loss: "
        f"{row['validation_loss']:.4f}.\n"
        f"# gpt2 run --preset {search.config.preset} --config best.yaml\n"
    )
    if command := COMMANDS.get(name):
        text += f"# gpt2 {command} --preset {search.config.preset} --config best.yaml\n"
    return text + yaml.safe_dump({"tasks": {name: changes}}, sort_keys=False)


def other(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `after` that differ from `before`, section by section."""
    changes = {}
    for name, value in after.items():
        if isinstance(value, dict):
            if inner := other(before[name], value):
                changes[name] = inner
        elif value != before[name]:
            changes[name] = value
    return changes


def table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows as a table for users, the best first."""
    order = {"ended": 0, "stopped early": 1, "failed": 2}
    ranked = sorted(results, key=lambda row: (order[row["state"]], row["validation_loss"] or WORST, row["candidate"]))
    return [
        {
            "candidate": row["candidate"],
            "validation loss": "" if row["validation_loss"] is None else f"{row['validation_loss']:.4f}",
            "step": row["step"],
            "state": f"failed: {row['reason']}" if row["reason"] else row["state"],
            "settings": ", ".join(f"{path}={value}" for path, value in row["settings"].items()) or "the preset",
        }
        for row in ranked
    ]
