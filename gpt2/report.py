"""A report: JSON for machines, one page for people."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2 import plots

REQUIRED = ("task", "title", "primary", "floor", "metrics", "baselines", "counts", "samples", "figures")
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.3rem .9rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}
.note{background:#fff7e0;padding:.6rem 1rem;border-left:4px solid #e0a800}
.good{background:#e9f7ec;padding:.6rem 1rem;border-left:4px solid #2da44e}
figure{display:inline-block;margin:0 1rem 1rem 0}
figcaption{font-size:.85rem;color:#555}img{max-width:100%}li{margin:.4rem 0}
"""


def write(report: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write report.json, report.html, report.md and figures to `out`; returns the report as written.

    `report` holds `task`, `title`, `primary` {name, higher_is_better}, `floor` (a baseline's name), `metrics`,
    `baselines` {name: metrics}, `counts`, `samples` {heading: [text]}, `figures` [{file, title}] and, optionally,
    `curve`, the training's journal. `ValueError` where a part is missing or a number is not finite.
    """
    missing = [name for name in REQUIRED if name not in report]
    if missing:
        raise ValueError(f"the report of {report.get('task')!r} lacks {', '.join(missing)}")
    complete = dict(report)
    curve = complete.pop("curve", [])
    metric = complete["primary"]["name"]
    values = {name: b[metric] for name, b in complete["baselines"].items()}
    for name, value in {"metrics": complete["metrics"][metric], **values}.items():
        if not math.isfinite(value):
            raise ValueError(f"the report of {complete['task']!r}: {metric} of {name} is {value}")
    complete["notes"] = notes(complete)
    figures = [plots.beside_baselines(metric, complete["metrics"][metric], values, out), *complete["figures"]]
    if curve:
        figures.append(plots.curve(curve, out))
    complete["figures"] = figures
    text = json.dumps(complete, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (out / "report.json").write_text(text + "\n", "utf-8")
    (out / "report.html").write_text(page(complete, out), "utf-8")
    (out / "report.md").write_text(markdown(complete), "utf-8")
    return complete


def notes(report: Mapping[str, Any]) -> list[str]:
    """A sentence on each baseline: whether the model is better."""
    metric, up = report["primary"]["name"], report["primary"]["higher_is_better"]
    mine, told = report["metrics"][metric], []
    for name, baseline in report["baselines"].items():
        theirs = baseline[metric]
        better = mine > theirs if up else mine < theirs
        verb = "is better than" if better else "LOSES to"
        told.append(f"The model {verb} the baseline {name} on {metric}: {mine:.4f} against {theirs:.4f}.")
    return told


def rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The table of metrics: header, then a row per metric with the model and each baseline."""
    names = list(report["baselines"])
    table = [["metric", "this model", *names]]
    for metric, value in report["metrics"].items():
        cells = [report["baselines"][name].get(metric) for name in names]
        table.append([metric.replace("_", " "), number(value), *(number(c) for c in cells)])
    return table


def number(value: float | None) -> str:
    """A metric's value for people."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def markdown(report: Mapping[str, Any]) -> str:
    """The page without figures, for Prefect."""
    header, *body = rows(report)
    lines = [f"# {report['title']}", *(f"* {note}" for note in report["notes"]), ""]
    lines += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    for heading, texts in report["samples"].items():
        lines += ["", f"## {heading}", ""]
        lines += ["* " + " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;") for text in texts]
    return "\n".join(lines) + "\n"


def page(report: Mapping[str, Any], out: Path) -> str:
    """One self-contained HTML page; figures are inside it."""
    header, *body = rows(report)
    cells = "".join(f"<th>{html.escape(c)}</th>" for c in header)
    table = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in body)
    told = "".join(
        f'<p class="{"note" if "LOSES" in note else "good"}">{html.escape(note)}</p>' for note in report["notes"]
    )
    figures = "".join(
        f'<figure><img alt="{html.escape(f["title"])}" src="data:image/png;base64,{encoded(out / f["file"])}">'
        f"<figcaption>{html.escape(f['title'])}</figcaption></figure>"
        for f in report["figures"]
    )
    samples = "".join(
        f"<h2>{html.escape(heading)}</h2><ul>{''.join(f'<li>{html.escape(t)}</li>' for t in texts)}</ul>"
        for heading, texts in report["samples"].items()
    )
    counts = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in report["counts"].items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(report["title"])}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(report['title'])}</h1>{told}{figures}"
        f"<table><tr>{cells}</tr>{table}</table><p>{html.escape(counts)}</p>{samples}</html>\n"
    )


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
