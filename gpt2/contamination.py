"""What is reported of the overlap between an evaluation set and the training text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.overlap import GRAM, NEAR, Hit
from gpt2.significance import wilson

FILE = "contamination.json"
METRIC = "contamination"
CORPUS, OTHERS = "the pretraining text", "the task's other examples"
HOW = {GRAM: "13 words in a row (of 8 to 12, all)", NEAR: "nearly the same text"}
SHOWN = 10


def summary(
    ids: Sequence[str | int], texts: Sequence[str], hits: Iterable[tuple[str, Hit]], unit: str, total: int
) -> dict[str, Any]:
    """Of the texts that were looked for, out of `total`: the `share` that was found, with ids as `contaminated`, counts
    as `by`, and `examples`. Each hit has its source before it; their order does not matter."""
    found = {(hit.unit, source, hit.how): hit for source, hit in sorted(hits, reverse=True)}
    contaminated = sorted({number for number, *_ in found})
    by = [
        {"source": source, "how": how, "units": sum(key[1:] == (source, how) for key in found)}
        for source in (CORPUS, OTHERS)
        for how in (GRAM, NEAR)
    ]
    first = {number: (source, hit) for (number, source, _), hit in sorted(found.items(), reverse=True)}
    examples = [
        {"id": ids[i], "text": texts[i], "source": source, "how": hit.how, "found": hit.found}
        for i, (source, hit) in sorted(first.items())[:SHOWN]
    ]
    return {
        "unit": unit,
        "total": total,
        "units": len(ids),
        "share": len(contaminated) / len(ids) if ids else 0.0,
        "contaminated": [ids[i] for i in contaminated],
        "by": [row for row in by if row["units"]],
        "examples": examples,
    }


def write(facts: Mapping[str, Any], out: Path) -> None:
    (out / FILE).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / FILE).read_text("utf-8"))


def told(facts: Mapping[str, Any]) -> str:
    """A sentence for people."""
    if not facts["units"]:
        return "Contamination: what is held out are choices, not texts; there is nothing to look for in training text."
    of = f" (of {facts['total']:,}, chosen by hash)" if facts["total"] > facts["units"] else ""
    by = ", ".join(f"{row['units']:,} by {HOW[row['how']]} in {row['source']}" for row in facts["by"])
    count = len(facts["contaminated"])
    return (
        f"Contamination: of {facts['units']:,} held-out {facts['unit']}s{of} the training text has {count:,} "
        f"({facts['share']:.2%}){': ' * bool(by)}{by}."
    )


def attached(content: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """A report's content with the metric (where there are intervals, with one), the sentence, examples and ids."""
    complete = {**content, "remarks": [*content.get("remarks", []), told(facts)], "contamination": dict(facts)}
    if facts["units"]:
        complete |= {"metrics": {**content["metrics"], METRIC: facts["share"]}}
        if "intervals" in content:
            low, high = wilson(np.array(len(facts["contaminated"])), np.array(facts["units"]))
            mine = {**content["intervals"]["model"], METRIC: [float(low), float(high)]}
            complete["intervals"] = {**content["intervals"], "model": mine}
    if facts["examples"]:
        header = [facts["unit"], "held-out text", "found in", "as", "training text"]
        rows = [
            [short(e["id"], 8), short(e["text"]), e["source"], HOW[e["how"]], short(e["found"])]
            for e in facts["examples"]
        ]
        table = {"header": header, "rows": rows}
        complete["tables"] = {**content.get("tables", {}), "Held-out texts that the training text has": table}
    return complete


def short(text: Any, limit: int = 160) -> str:
    return str(text) if len(str(text)) <= limit else f"{str(text)[:limit]}…"
