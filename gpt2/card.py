"""A model card (Mitchell et al. 2019, arXiv:1810.03993): what a model is for, how good it is, what it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gpt2 import exposure, language_model, report
from gpt2.pages.markdown import bullets, table
from gpt2.task import task

NAME = "README.md"
"""The card's name among a model's files, as model hubs have it."""
Rows = Sequence[tuple[str, Any]]


def card(
    name: str, results: Mapping[str, Any], data: Rows, training: Rows, lineage: Rows, registered: str | None = None
) -> str:
    """The card of a task's model, or of the base, as Markdown; `registered` is the registry's name, if not `gpt2-NAME`.

    `results` is the report of its evaluation (`gpt2.report`); the others are rows of what and value.
    """
    base, registered = name == language_model.NAME, registered or f"gpt2-{name}"
    use, limits = (language_model.USE, language_model.LIMITS) if base else (task(name).use, task(name).limits)
    header, *body = report.rows(results)
    remembered = [exposure.told(results["canaries"])] if "canaries" in results else []
    counts = ", ".join(f"{what.replace('_', ' ')} {value:,}" for what, value in results["counts"].items())
    call = f'gpt2.load("models:/{registered}@champion")\nmodel.predict([{json.dumps(example_input(name))}])'
    parts = [
        f"# {registered}: {results['title']}",
        "## Intended use",
        use,
        "## Results beside baselines",
        f"On held-out examples ({counts}); the gate compares {results['primary']['name'].replace('_', ' ')}.",
        table(header, body),
        bullets(results["notes"]),
        "## Data",
        table(["what", "value"], data),
        "## Training",
        table(["what", "value"], training),
        "## Limits",
        bullets([*limits, *remembered]),
        "## Lineage",
        "Every id is a hash of what its artifact was made from: settings, the ids of inputs, and code.",
        table(["what", "value"], lineage),
        "## How to load",
        f"```python\nimport gpt2\n\nmodel = {call}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def example_input(name: str) -> Any:
    """An input for people to copy."""
    if name == language_model.NAME:
        return language_model.PROMPTS[0]
    return task(name).example
