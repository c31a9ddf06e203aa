"""Settings as a form: what the JSON schema of a model says to whoever draws one, such as Prefect's UI."""

from __future__ import annotations

from typing import Any


def as_form(schema: dict[str, Any]) -> None:
    """What a JSON schema needs to be a form: what is required comes first, in an order that a database keeps, and what
    may be left empty is one field, not a choice between a type and None."""
    shown, required = schema.get("properties", {}), schema.get("required", [])
    for position, name in enumerate(sorted(shown, key=lambda name: name not in required)):
        field = shown[name]
        field.setdefault("position", position)
        if "anyOf" in field and field.get("default", "") is None:
            del field["default"]
            kinds = [kind for kind in field.pop("anyOf") if kind != {"type": "null"}]
            field.update(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})
