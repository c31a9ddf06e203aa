"""The settings of a whole pipeline: one schema for presets, command line, flow parameters and MLflow."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model, model_serializer, model_validator

from cluster.config import ClusterConfig
from gpt2.data.config import LONGEST, CanaryConfig, CorpusConfig, TokenizerConfig
from gpt2.gate.config import GateConfig
from gpt2.model.config import ModelConfig, ModelShape
from gpt2.settings import Settings
from gpt2.tasks.base.kind import BASE
from gpt2.tasks.config import EvaluateConfig, TaskSettings
from gpt2.tasks.task import tasks
from gpt2.training.config import BudgetConfig, RefreshConfig, TrainConfig

PRESETS = files("flows") / "presets"
Schema = TypeVar("Schema", bound=BaseModel)

if TYPE_CHECKING:
    TaskSection = Settings
else:
    TaskSection = create_model(
        "Tasks", __base__=Settings, **{name: (task.Settings, task.Settings()) for name, task in tasks().items()}
    )
    TaskSection.__doc__ = "The downstream tasks, each with its settings."


class PipelineConfig(Settings):
    """All settings of a pipeline, from documents to registered models."""

    corpus: CorpusConfig = CorpusConfig()
    """The text to train on."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The tokenizer, which turns text into token ids."""
    model: ModelShape = ModelShape()
    """The Transformer's shape."""
    pretrain: TrainConfig
    """Pretraining: length, batches, rates."""
    refresh: RefreshConfig = RefreshConfig()
    """Continued training on new text: `gpt2 run refresh`."""
    tasks: TaskSection = TaskSection()
    """The downstream tasks."""
    canaries: CanaryConfig = CanaryConfig()
    """Made-up secrets in the training text, to measure how much the model memorizes."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How much held-out text the base model is measured on."""
    gate: GateConfig = GateConfig()
    """Conditions under which a model becomes the champion."""
    cluster: ClusterConfig = ClusterConfig()
    """The cluster on which training runs."""
    budget: BudgetConfig = BudgetConfig()
    """Limits of time and money for training, and prices."""

    @model_validator(mode="after")
    def _relations(self):
        for name, (train, workers) in self.trainings().items():
            if train.context > self.model.n_positions:
                raise ValueError(
                    f"{name}.context={train.context}: is longer than model.n_positions={self.model.n_positions}; "
                    f"lower the context or raise n_positions"
                )
            share = train.micro_batch_size * workers
            if train.batch_size % share:
                raise ValueError(
                    f"{name}.batch_size={train.batch_size}: is not divisible by micro_batch_size="
                    f"{train.micro_batch_size} x num_workers={workers}; "
                    f"choose a multiple of {share}"
                )
            if train.precision == "fp16" and not self.cluster.use_gpu:
                raise ValueError(f"{name}.precision=fp16: needs a GPU; use bf16, or set cluster.use_gpu: true")
        if self.canaries.count and self.pretrain.context < LONGEST:
            raise ValueError(
                f"pretrain.context={self.pretrain.context}: is shorter than a canary, which has up to {LONGEST} "
                f"tokens; set canaries.count to 0, or a longer context"
            )
        named = ["base", *(s.register_as or name for name, s in self.task_settings(enabled_only=False).items())]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(
                f"register_as={twice[0]}: two models would be registered as gpt2-{twice[0]}; choose another name"
            )
        for name, settings in self.task_settings().items():
            adaptation = settings.adaptation
            if adaptation.kind == "lora" and adaptation.rank > self.model.n_embd:
                raise ValueError(
                    f"tasks.{name}.adaptation.rank={adaptation.rank}: is more than the matrices of a model with "
                    f"n_embd={self.model.n_embd} have; lower the rank"
                )
        known = dict.fromkeys(b for kind in (BASE, *tasks().values()) for b in kind.baselines)
        for name in self.gate.must_beat:
            if name not in known:
                raise ValueError(
                    f"gate.must_beat={name!r}: is not a baseline of any model{did_you_mean(name, list(known))}"
                )
        return self

    def task_settings(self, enabled_only: bool = True) -> dict[str, TaskSettings]:
        """Return the settings of the tasks by name."""
        all_settings = {name: getattr(self.tasks, name) for name in type(self.tasks).model_fields}
        return {n: s for n, s in all_settings.items() if s.enabled or not enabled_only}

    def trainings(self) -> dict[str, tuple[TrainConfig, int]]:
        """Return (settings, number of workers) of every training, by its path in the schema."""
        pretrain = {"pretrain": (self.pretrain, self.cluster.num_workers)}
        tasks = self.task_settings().items()
        return pretrain | {f"tasks.{n}.train": (s.train, self.task_cluster(n).num_workers) for n, s in tasks}

    def evaluated_tokens(self) -> int:
        """Return the most held-out tokens that the base model is measured on."""
        p = self.pretrain
        return self.evaluate.most(None if p.steps is None else p.steps * p.batch_size * p.context)

    def task_cluster(self, name: str) -> ClusterConfig:
        """Return the cluster settings of a training, that of a task or of the base model."""
        settings = self.task_settings(enabled_only=False).get(name)
        workers = settings.num_workers if settings else None
        if workers is None:
            return self.cluster
        return ClusterConfig.model_validate({**self.cluster.model_dump(), "num_workers": workers})

    def model_config_with_vocabulary(self) -> ModelConfig:
        """Return the model's configuration, including the size of the vocabulary."""
        return ModelConfig.model_validate({**self.model.model_dump(), "vocab_size": self.tokenizer.vocab_size})


class InvalidConfig(ValueError):
    """Raised for wrong settings, with a line for each: field, value and remedy."""


def preset_names() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(p.name.removesuffix(".yaml") for p in PRESETS.iterdir() if p.name.endswith(".yaml"))


def resolve(preset: str = "laptop", file: Path | None = None, changes: Sequence[str] = ()) -> PipelineConfig:
    """Return the preset's settings, changed by a YAML file and by `a.b=value` items; raises `InvalidConfig`."""
    if preset not in preset_names():
        raise InvalidConfig(f"preset {preset!r}: does not exist{did_you_mean(preset, preset_names())}")
    values = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())
    if file is not None:
        values = merged(values, read_yaml(file))
    for change in changes:
        values = merged(values, parse_change(change))
    return validate(values)


def validate(values: Mapping[str, Any]) -> PipelineConfig:
    """Return the validated settings of a pipeline; raises `InvalidConfig` with a line for each wrong setting."""
    return validated(PipelineConfig, values)


def validated(schema: type[Schema], values: Mapping[str, Any]) -> Schema:
    """Return validated settings of any schema; raises `InvalidConfig` with a line for each wrong setting."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise InvalidConfig("\n".join(explain(error, schema))) from None


def settings(schema: type[Schema], given: Mapping[str, Any], file: Path | None, changes: Sequence[str]) -> Schema:
    """Return the settings of a job: those of a YAML file, changed by `a.b=value` items and by the values `given`."""
    values = read_yaml(file) if file is not None else {}
    for change in changes:
        values = merged(values, parse_change(change))
    return validated(schema, merged(values, {name: value for name, value in given.items() if value is not None}))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file; raises `InvalidConfig` if it can't be read."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InvalidConfig(f"--config {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidConfig(f"--config {path} can't be read as YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InvalidConfig(f"--config {path} holds a {type(values).__name__}, not sections such as `pretrain:`")
    return values


def parse_change(text: str) -> dict[str, Any]:
    """Return `a.b=value`, where the value is YAML, as nested settings; raises `InvalidConfig`."""
    name, equals, value = text.partition("=")
    if not equals or not all(name.split(".")):
        raise InvalidConfig(f"--set {text!r} is not of the form section.field=value, as in pretrain.steps=500")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InvalidConfig(f"--set {text!r}: {value!r} is not a YAML value; quote it") from None
    if isinstance(parsed, str):  # YAML 1.1 reads 6e-4 as text
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    for key in reversed(name.split(".")):
        parsed = {key: parsed}
    return parsed


def merged(base: Any, change: Any) -> Any:
    """Return `base` overridden by `change`, section by section."""
    if isinstance(base, Mapping) and isinstance(change, Mapping):
        return {**base, **{k: merged(base.get(k), v) for k, v in change.items()}}
    return change


def explain(error: ValidationError, schema: type[BaseModel] = PipelineConfig) -> list[str]:
    """Return a line for each error: field = value: what is wrong and what to do."""
    lines = []
    for item in error.errors():
        path = ".".join(str(p) for p in item["loc"])
        if item["type"] == "extra_forbidden":
            hint = did_you_mean(str(item["loc"][-1]), fields_at(item["loc"][:-1], schema))
            lines.append(f"{path}: there is no such setting{hint}")
            continue
        message = item["msg"].removeprefix("Value error, ")
        value = item["input"]
        if item["type"] == "missing":
            lines.append(f"{path}: is required; set it")
        elif isinstance(value, (Mapping, BaseModel)):
            lines.append(f"{path}: {message}" if path else message)
        else:
            remedy = "; give a number" if isinstance(value, float) and not math.isfinite(value) else ""
            lines.append(f"{path} = {value!r}: {message}{remedy}")
    return lines


def fields_at(location: Sequence[str | int], schema: type[BaseModel]) -> list[str]:
    """Return the names of the settings in a section."""
    model: Any = schema
    for part in location:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            return []
        model = field.annotation
    return list(getattr(model, "model_fields", {}))


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return a hint for a message: the closest known name, else all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(known)}" if known else ""


FILES = {
    "sources": "corpus.sources",
    "text_field": "corpus.text_field",
    **{f"{name}_source": f"tasks.{name}.source" for name in tasks()},
    "recommendation_interactions": "tasks.recommendation.interactions",
}
"""Fields of the form for files of one's own, and the setting that each changes."""
MAIN = {
    **{f"{name}_enabled": f"tasks.{name}.enabled" for name in tasks()},
    "steps": "pretrain.steps",
    "batch_size": "pretrain.batch_size",
    "learning_rate": "pretrain.optimizer.learning_rate",
    "num_workers": "cluster.num_workers",
    "use_gpu": "cluster.use_gpu",
    "seed": "pretrain.seed",
    "canaries": "canaries.count",
}
"""Fields of the form for settings, and the setting that each changes."""
GATE = {name: f"gate.{name}" for name in GateConfig.model_fields}


def optional_field(path: str) -> tuple[Any, Any]:
    """Return an optional form field with the type, bounds and description of the setting at `path`."""
    model: Any = PipelineConfig
    for part in path.split("."):
        field = model.model_fields[part]
        model = field.annotation
    kind: Any = field.annotation
    if type(None) in get_args(kind):
        kind = next(t for t in get_args(kind) if t is not type(None))
    if kind is bool:
        kind = Literal["yes", "no"]  # the form sends an untouched switch as off
    description = f"{field.description} Sets `{path}`; empty: the preset's value."
    bounded: Any = Annotated[kind, *field.metadata] if field.metadata else kind
    return bounded | None, Field(None, description=description)


class Filled(Settings):
    """Settings that are shown and passed on without their empty fields."""

    @model_serializer(mode="wrap")
    def _only_filled(self, handler: Any) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


if TYPE_CHECKING:
    Preset = str
    Files = Settings
    Main = Settings
    Gate = Settings
else:
    Preset = Literal[tuple(preset_names())]
    Files = create_model("Files", __base__=Filled, **{name: optional_field(path) for name, path in FILES.items()})
    Files.__doc__ = "Files of your own, and their columns. Empty fields keep the preset's value, which is a sample."
    Main = create_model("Main", __base__=Filled, **{name: optional_field(path) for name, path in MAIN.items()})
    Main.__doc__ = "The settings that are changed most. Empty fields keep the preset's value."
    Gate = create_model("Gate", __base__=Filled, **{name: optional_field(path) for name, path in GATE.items()})
    Gate.__doc__ = "Conditions under which a model becomes the champion. Empty fields keep the preset's value."


def changes_of(filled: Settings, paths: Mapping[str, str]) -> list[str]:
    """Return the filled fields as `a.b=value` items."""
    return [f"{paths[name]}={json.dumps(value)}" for name, value in filled.model_dump(mode="json").items()]
