"""The candidates of a search: settings of a task's fine-tuning, drawn from a space and checked against the schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel

from flows.config import InvalidConfig, PipelineConfig, merged, near, validate
from gpt2 import space
from gpt2.config import ADAPTATION_FIELDS, AdaptationConfig, TrainConfig
from gpt2.task import task as task_of

MISSES = 100
"""So many draws in a row that are nothing new: the space has no more."""
ELSEWHERE = {
    "train.steps": "all candidates train equally long: set max_steps",
    "train.epochs": "all candidates train equally long: set max_steps",
    "train.continue_from": "candidates begin with the pretrained model",
    "train.seed": "a lucky seed is no better setting; leave it out",
}


@dataclass(frozen=True)
class Candidate:
    """Settings to try."""

    drawn: dict[str, Any]
    """{path: value} of what was drawn and is read; {} for the preset's."""
    settings: PipelineConfig
    task: str

    @property
    def train(self) -> TrainConfig:
        return getattr(self.settings.tasks, self.task).train

    @property
    def adaptation(self) -> AdaptationConfig:
        return getattr(self.settings.tasks, self.task).adaptation

    def identity(self) -> dict[str, Any]:
        """What its result depends on, beside the inputs."""
        return {"train": self.train.identity(), "adaptation": self.adaptation.identity()}


def candidates(
    settings: PipelineConfig, name: str, given: Mapping[str, Any], trials: int, seed: int
) -> list[Candidate]:
    """The settings as they are, and others drawn from the space (without one: `default_space`), no two alike.

    As many as `trials`, or as there are. `InvalidConfig` names what can't be.
    """
    dimensions = space.dimensions(given) if given else default_space(settings, name)
    whole = check(dimensions, settings, name)
    found = [Candidate({}, settings, name)]
    seen = [found[0].identity()]
    number = missed = 0
    while len(found) < trials and missed < MISSES:
        candidate = changed(settings, name, space.draw(dimensions, whole, seed, number))
        number, missed = number + 1, missed + 1
        if candidate.identity() not in seen:
            found.append(candidate)
            seen.append(candidate.identity())
            missed = 0
    if len(found) < 2:
        raise InvalidConfig("space: all that it has is the preset's own settings; give other choices, or ranges")
    return found


def default_space(settings: PipelineConfig, name: str) -> dict[str, space.Dimension]:
    """Around the settings, of what matters most. Not the batch: of equally many steps the larger sees more. Warm-up is
    over at the first look, or it would be judged by what it has not yet learned."""
    mine = getattr(settings.tasks, name)
    optimizer, rate = mine.train.optimizer, mine.train.optimizer.learning_rate
    found: dict[str, space.Dimension] = {
        "train.optimizer.learning_rate": space.Range(low=rate / 10, high=min(1.0, rate * 10), log=True),
        "train.optimizer.weight_decay": sorted({0.0, 0.01, 0.1, optimizer.weight_decay}),
        "train.optimizer.warmup_steps": sorted({0, mine.train.steps // 20, mine.train.steps // 10}),
    }
    if mine.adaptation.kind == "full":  # else the embeddings stay as they are
        found["train.optimizer.embedding_rate"] = space.Range(low=0.3, high=10, log=True)
    if mine.adaptation.kind == "lora":
        rank = mine.adaptation.rank
        found["adaptation.rank"] = sorted({max(1, rank // 2), rank, min(settings.model.n_embd, 2 * rank)})
        found["adaptation.alpha"] = space.Range(low=4, high=64, log=True)
    if mine.adaptation.kind == "prefix":
        found["adaptation.prefix_length"] = sorted({max(1, mine.adaptation.prefix_length // 2), 16, 32})
    return found


def check(dimensions: Mapping[str, space.Dimension], settings: PipelineConfig, name: str) -> set[str]:
    """The paths of integers; `InvalidConfig` where the schema has no such setting, or not these values."""
    whole = set()
    for path, dimension in dimensions.items():
        kind = type_at(path, name)
        if isinstance(dimension, space.Range) and kind not in (int, float):
            raise InvalidConfig(f"space: tasks.{name}.{path} is no number and has no range; give a list of choices")
        if kind is int:
            whole.add(path)
        of = reader(path)
        kinds = dimensions.get("adaptation.kind", [getattr(settings.tasks, name).adaptation.kind])
        if of and of not in (kinds if isinstance(kinds, list) else []):
            raise InvalidConfig(
                f"space: tasks.{name}.{path} is read with kind={of} only; add adaptation.kind: [{of}] to the space"
            )
        for value in space.ends(dimension, kind is int):
            changed(settings, name, {path: value} | ({"adaptation.kind": of} if of else {}))
    return whole


def type_at(path: str, name: str) -> Any:
    """The type of a setting of a task; `InvalidConfig` where it can't be searched."""
    model: Any = task_of(name).Settings
    where = f"space: tasks.{name}.{path}"
    if path.partition(".")[0] not in ("train", "adaptation"):
        raise InvalidConfig(f"{where} is no setting of fine-tuning; give paths such as train.optimizer.learning_rate")
    if path in ELSEWHERE:
        raise InvalidConfig(f"{where} is not searched: {ELSEWHERE[path]}")
    for part in path.split("."):
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            raise InvalidConfig(f"{where}: there is no such setting{near(part, list(fields))}")
        extra, model = fields[part].json_schema_extra, fields[part].annotation
        if isinstance(extra, dict) and extra.get("identity") is False:
            raise InvalidConfig(f"{where} does not change what is learned; leave it out")
    if isinstance(model, type) and issubclass(model, BaseModel):
        raise InvalidConfig(f"{where} is a section; name a setting in it, of {', '.join(model.model_fields)}")
    known = [kind for kind in get_args(model) if kind is not NoneType]
    return known[0] if len(known) == 1 and NoneType in get_args(model) else model


def reader(path: str) -> str | None:
    """The kind of adaptation that reads a setting; None where all do."""
    section, _, field = path.partition(".")
    if section != "adaptation":
        return None
    return next((kind for kind, fields in ADAPTATION_FIELDS.items() if field in fields), None)


def changed(settings: PipelineConfig, name: str, drawn: Mapping[str, Any]) -> Candidate:
    """The settings with what was drawn, but for what another kind of adaptation reads; micro-batches fit the batch."""
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
    return Candidate(read, validate(values), name)
