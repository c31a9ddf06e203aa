"""A model card (Mitchell et al. 2019, arXiv:1810.03993): what a model is for, how good it is, what it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from gpt2.evaluation import report
from gpt2.pages.markdown import bullets, table

NAME = "README.md"
"""The card's name among a model's files, as model hubs have it."""
Rows = Sequence[tuple[str, Any]]


class Described(Protocol):
    """What a card says of a kind of model (`gpt2.tasks.task.ModelKind`)."""

    use: ClassVar[str]
    example: ClassVar[Any]

    def limits_of(self, report: Mapping[str, Any]) -> Sequence[str]: ...


def card(
    kind: Described, registered: str, results: Mapping[str, Any], data: Rows, training: Rows, lineage: Rows
) -> str:
    """Return the card of a model as Markdown; `registered` is the registry's name for it.

    `results` is the report of its evaluation (`gpt2.evaluation.report`); the others are rows of what and value.
    """
    header, *body = report.rows(results)
    counts = ", ".join(f"{what.replace('_', ' ')} {value:,}" for what, value in results["counts"].items())
    call = f'gpt2.load("models:/{registered}@champion")\nmodel.predict([{json.dumps(kind.example)}])'
    parts = [
        f"# {registered}: {results['title']}",
        "## Intended use",
        kind.use,
        "## Results beside baselines",
        f"On held-out examples ({counts}); the gate compares {results['primary']['name'].replace('_', ' ')}.",
        table(header, body),
        bullets(results["notes"]),
        "## Data",
        table(["what", "value"], data),
        "## Training",
        table(["what", "value"], training),
        "## Limits",
        bullets(kind.limits_of(results)),
        "## Lineage",
        "Every id is a hash of what its artifact was made from: settings, the ids of inputs, and code.",
        table(["what", "value"], lineage),
        "## How to load",
        f"```python\nimport gpt2\n\nmodel = {call}\n```",
    ]
    return "\n\n".join(parts) + "\n"
