"""What `gpt2 search` and its form ask for, the candidates that follow from it, and the best of them as settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, field_validator

from cluster.home import store
from cluster.lineage import Lineage
from flows.candidates import Candidate, candidates
from flows.config import InvalidConfig, PipelineConfig, merged, parse_change, preset_names, resolve, validate
from flows.learner import CHAMPION, fitting, plan_of, pretrained
from flows.new_data import like
from flows.plan import TRAINING, Plan
from gpt2 import space
from gpt2.artifact import Key
from gpt2.candidate import WORST, Curve
from gpt2.config import Settings, operational
from gpt2.task import task as task_of
from gpt2.task import tasks

REDUCTION = 3
"""Of so many candidates one goes on, after a third and a ninth of all steps (Li et al. 2020 take 4)."""
COMMANDS = {"sentiment": "train-classifier FILE", "recommendation": "train-recommender ITEMS INTERACTIONS"}
"""What else takes the best settings of a task."""
CODE = ("gpt2.space", "gpt2.candidate", "gpt2.figures", "cluster.search", "flows.candidates", "flows.search")
if TYPE_CHECKING:
    Preset = str
    TaskName = str
else:
    Preset = Literal[tuple(preset_names())]
    TaskName = Literal[tuple(tasks())]


class SearchConfig(Settings):
    """A search for better fine-tuning settings of a task, by its validation loss."""

    task: TaskName
    """The task whose fine-tuning is searched."""
    base: str = Field(CHAMPION, min_length=1)
    """The pretrained model that learns: models:/gpt2-base@ALIAS or models:/gpt2-base/VERSION, trained in this home."""
    preset: Preset = "laptop"
    """The settings that candidates change; they are the first candidate. Those of the model and its tokenizer are the
    pretrained model's."""
    trials: int = Field(12, ge=2, le=1000)
    """How many candidates, at most as many as the space has."""
    max_steps: int | None = Field(None, ge=1)
    """Steps of a candidate that is not stopped early; empty: as in the preset."""
    space: dict[str, Any] = Field(default={})
    """Paths under the task, in train and adaptation, each with choices or a range, as in {"train.batch_size": [16, 32],
    "train.optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": true}}. Empty: learning rates, warm-up and
    weight decay around the preset's, and what its adaptation reads; dropout (adaptation.model_dropout, or dropout of
    LoRA) only where it is named. Candidates train for equally many steps: of two
    batch sizes the larger sees more."""
    eval_samples: int = Field(1000, ge=1)
    """Validation samples at each look, of some nine, on which candidates are stopped or chosen."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seeds what is drawn from the space. The seed of the candidates' trainings is the preset's."""
    parallel: int | None = operational(None, ge=1, le=4096)
    """Candidates at a time; empty: as many as there are CPU cores or GPUs. With 1 nothing is left to chance."""
    changes: list[str] = Field(default=[])
    """Any other settings of the pipeline, each as in tasks.sentiment.source=posts.csv."""

    @field_validator("space", mode="before")
    @classmethod
    def _is_a_space(cls, value: Any) -> dict[str, Any]:
        return space.plain(space.dimensions(value))


@dataclass(frozen=True)
class SearchPlan:
    """All that is decided before anything starts."""

    config: SearchConfig
    candidates: list[Candidate]
    plan: Plan
    key: Key

    @classmethod
    def of(cls, config: SearchConfig) -> SearchPlan:
        """The candidates and the key of their search; `ValueError` for wrong settings, or no pretrained model."""
        settings_of(config, None)  # wrong settings are told before the registry is asked
        base = pretrained(config.base)
        if base is None:
            raise InvalidConfig(
                f"base = {config.base!r}: there is no such model yet; make one first: gpt2 run --preset {config.preset}"
            )
        settings = settings_of(config, base)
        found = candidates(settings, config.task, config.space, config.trials, config.seed)
        plan = plan_of(settings, base)
        keys = plan.tasks[config.task]
        spec = {
            "task": config.task,
            "candidates": [candidate.identity() for candidate in found],
            "eval_samples": config.eval_samples,
            "reduction": REDUCTION,
            "preset": {"name": config.preset, **Candidate({}, resolve(config.preset), config.task).identity()},
        }
        inputs = {"base": plan.base.id, "examples": keys.examples.id, "tokenizer": plan.tokenizer.id}
        code = (*TRAINING, f"gpt2.tasks.{config.task}", *task_of(config.task).code, *CODE)
        return cls(config, found, plan, Key("search", spec, inputs, code))

    @property
    def identity(self) -> str:
        """The same for equal searches."""
        return f"search-{self.key.id}"

    def nothing(self) -> str | None:
        """Why there is nothing to do; None where there is something."""
        made = store().find(self.key)
        return f"the search was done before; {made.file('best.yaml')}" if made else None

    @property
    def steps(self) -> int:
        """Of a candidate that is not stopped early."""
        steps = self.candidates[0].train.steps
        assert steps is not None
        return steps


def settings_of(config: SearchConfig, base: Lineage | None) -> PipelineConfig:
    """The preset's settings, of this task alone, with this length of training and the pretrained model's shape."""
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
    """A row for each candidate, in order: what was drawn, how far it came, its last validation loss."""
    found = []
    for number, (candidate, curve) in enumerate(zip(search.candidates, curves, strict=True)):
        step, loss = curve.points[-1] if curve.points else (0, None)
        state = "failed" if curve.reason else "ended" if curve.ended else "stopped early"
        bad = loss is None or loss >= WORST
        points = [(s, value) for s, value in curve.points if value < WORST]
        found.append(
            {"candidate": number, "settings": candidate.drawn, "step": step, "validation_loss": None if bad else loss,
             "state": state, "reason": curve.reason, "curve": points}
        )  # fmt: skip
    return found


def best_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The row with the least validation loss at the last step; `ValueError` where none is finite."""
    ended = [row for row in found if row["state"] == "ended" and row["validation_loss"] is not None]
    if not ended:
        raise ValueError("no candidate came to its end with a finite loss; give a space of lower learning rates")
    return min(ended, key=lambda row: row["validation_loss"])


def as_settings(search: SearchPlan, row: Mapping[str, Any]) -> str:
    """YAML that goes over the preset and gives the candidate's fine-tuning: only what is other than there."""
    name, candidate = search.config.task, search.candidates[row["candidate"]]
    before = getattr(resolve(search.config.preset).tasks, name).model_dump(mode="json")
    after = getattr(candidate.settings.tasks, name).model_dump(mode="json")
    found = {part: change for part in ("train", "adaptation") if (change := other(before[part], after[part]))}
    told = (
        f"# The best of {len(search.candidates)} candidates of search/{search.key.id}, by validation loss: "
        f"{row['validation_loss']:.4f}.\n"
        f"# gpt2 run --preset {search.config.preset} --config best.yaml\n"
    )
    if command := COMMANDS.get(name):
        told += f"# gpt2 {command} --preset {search.config.preset} --config best.yaml\n"
    return told + yaml.safe_dump({"tasks": {name: found}}, sort_keys=False)


def other(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What is other in `after`, section by section."""
    found = {}
    for name, value in after.items():
        if isinstance(value, dict):
            if inner := other(before[name], value):
                found[name] = inner
        elif value != before[name]:
            found[name] = value
    return found


def table(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows for people, the best first."""
    order = {"ended": 0, "stopped early": 1, "failed": 2}
    ranked = sorted(found, key=lambda row: (order[row["state"]], row["validation_loss"] or WORST, row["candidate"]))
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
