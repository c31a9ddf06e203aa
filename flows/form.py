"""Settings of the pipeline as fields of a form. A field that is left empty keeps the preset's value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, create_model, model_serializer

from flows.config import PipelineConfig, preset_names
from gpt2.gate.config import GateConfig
from gpt2.settings import Settings
from gpt2.tasks.task import tasks

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
