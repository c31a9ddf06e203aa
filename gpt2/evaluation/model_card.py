"""A model card (Mitchell et al. 2019, arXiv:1810.03993): intended use, results, limits and lineage of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from gpt2.evaluation import report
from gpt2.pages.markdown import bullets, table

NAME = "README.md"
"""File name of the card among a model's files, as model hubs expect it."""
Rows = Sequence[tuple[str, Any]]


class Described(Protocol):
    """The facts that a card takes from a kind of model (`gpt2.tasks.task.ModelKind`)."""

    use: ClassVar[str]
    example: ClassVar[Any]

    def limits_of(self, report: Mapping[str, Any]) -> Sequence[str]: ...


def card(
    kind: Described, registered: str, results: Mapping[str, Any], data: Rows, training: Rows, lineage: Rows
) -> str:
    """Return the card of a model as Markdown; `registered` is its name in the registry.

    `results` is its evaluation report (`gpt2.evaluation.report`). The others are rows of (name, value).
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
        "Every id is a hash of the settings, input ids and code that its artifact was made from.",
        table(["what", "value"], lineage),
        "## How to load",
        f"```python\nimport gpt2\n\nmodel = {call}\n```",
    ]
    return "\n\n".join(parts) + "\n"
