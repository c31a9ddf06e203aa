"""The base of all settings: frozen Pydantic models.

One schema serves YAML presets, command-line flags, Prefect's parameter form and MLflow's records. Nothing here imports
PyTorch, so a wrong value is refused before anything heavy is loaded.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def as_form(schema: dict[str, Any]) -> None:
    """Adapt a JSON schema to forms, in place: required fields come first, by an explicit position.

    A database may reorder keys, but keeps positions. An optional field becomes one field, not a choice between a type
    and None.
    """
    shown, required = schema.get("properties", {}), schema.get("required", [])
    for position, name in enumerate(sorted(shown, key=lambda name: name not in required)):
        field = shown[name]
        field.setdefault("position", position)
        if "anyOf" in field and field.get("default", "") is None:
            del field["default"]
            kinds = [kind for kind in field.pop("anyOf") if kind != {"type": "null"}]
            field.update(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})


class Settings(BaseModel):
    """Base of every settings model: frozen, without unknown keys or NaN; field docstrings become descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True,
        json_schema_extra=as_form,
    )  # fmt: skip

    def identity(self) -> dict:
        """Return the settings that determine the result, as JSON; fields marked `identity: False` are left out."""
        dumped = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("identity") is False:
                dumped.pop(name, None)
            elif isinstance(value := getattr(self, name), Settings):
                dumped[name] = value.identity()
        return dumped


def operational(default, **bounds):
    """Return a field that changes how a result is computed, but not the result: it is not part of an artifact's id."""
    return Field(default, json_schema_extra={"identity": False}, **bounds)
