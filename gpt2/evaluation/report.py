"""A report: JSON for machines, one page for people; with parameters and latency of the model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from gpt2.evaluation import plots
from gpt2.pages import html
from gpt2.pages.markdown import bullets, harmless, number, table, with_interval


def prediction_cost(predictor: Any, module: Any, example: Sequence[Any], tries: int = 11) -> dict[str, float]:
    """Return a model's `parameters` (count) and `latency_ms`, the median time (ms) of predicting one input."""
    taken = []
    for _ in range(tries):
        began = time.perf_counter()
        predictor.predict(example, {})
        taken.append(time.perf_counter() - began)
    parameters = sum(p.numel() for p in module.parameters())
    return {"parameters": parameters, "latency_ms": round(1000 * median(taken), 3)}


REQUIRED = ("task", "title", "primary", "floor", "metrics", "baselines", "counts", "samples", "figures")


def write(report: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write report.json, report.html, report.md and the figures to `out`; return the report as written.

    Required: `task`, `title`, `primary` {name, higher_is_better}, `floor` (a baseline's name), `metrics`, `baselines`
    {name: metrics}, `counts`, `samples` {heading: [text]} and `figures` [{file, title}]. Optional: `curve` (the
    training's journal), the keys of `gpt2.evaluation.unit_results` summaries, `tables` {heading: {header, rows}},
    `remarks` and `cost` {parameters, latency_ms}. Raises `ValueError` if a part is missing or a number is not finite.
    """
    missing = [name for name in REQUIRED if name not in report]
    if missing:
        raise ValueError(f"the report of {report.get('task')!r} lacks {', '.join(missing)}; add them")
    complete = dict(report)
    curve = complete.pop("curve", [])
    metric = complete["primary"]["name"]
    values = {name: b[metric] for name, b in complete["baselines"].items()}
    for name, value in {"metrics": complete["metrics"][metric], **values}.items():
        if not math.isfinite(value):
            raise ValueError(f"the report of {complete['task']!r}: {metric} of {name} is {value}")
    complete["notes"] = notes(complete)
    intervals = {n: i[metric] for n, i in complete.get("intervals", {}).items()}
    figures = [plots.beside_baselines(metric, complete["metrics"][metric], values, out, intervals)]
    if parts := complete.get("slices"):
        within = complete["slice_metric"]
        figures.append(plots.slices(within, complete["metrics"][within], parts, out))
    figures += complete["figures"]
    if curve:
        figures.append(plots.curve(curve, out))
    complete["figures"] = figures
    text = json.dumps(complete, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (out / "report.json").write_text(text + "\n", "utf-8")
    (out / "report.html").write_text(page(complete, out), "utf-8")
    (out / "report.md").write_text(markdown(complete), "utf-8")
    return complete


def notes(report: Mapping[str, Any]) -> list[str]:
    """Return a sentence per baseline: whether the model is better, by how much, and with which interval."""
    metric, up = report["primary"]["name"], report["primary"]["higher_is_better"]
    mine, sentences = report["metrics"][metric], []
    for name, baseline in report["baselines"].items():
        theirs = baseline[metric]
        better = mine > theirs if up else mine < theirs
        verb, by = "is better than" if better else "LOSES to", ""
        if difference := report.get("differences", {}).get(name, {}).get(metric):
            low, high = difference["interval"]
            by = f", a difference of {difference['value']:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"
            if better and low <= 0 <= high:
                verb = "is NOT SURELY better than"
        on = metric.replace("_", " ")
        sentences.append(f"The model {verb} the baseline {name} on {on}: {mine:.4f} against {theirs:.4f}{by}.")
    return sentences


def rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of metrics: a header, then a row per metric with the model and each baseline, with intervals."""
    names, intervals = list(report["baselines"]), report.get("intervals", {})
    lines = [["metric", "this model", *names]]
    primary = report["primary"]["name"]
    for metric in sorted(report["metrics"], key=lambda metric: metric != primary):
        value = report["metrics"][metric]
        cells = [with_interval(value, intervals.get("model", {}).get(metric))]
        for name in names:
            cells.append(with_interval(report["baselines"][name].get(metric), intervals.get(name, {}).get(metric)))
        lines.append([metric.replace("_", " "), *cells])
    return lines


def slice_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of slices: a header, then a row per slice."""
    names = list(report["slices"][0]["baselines"])
    metric = report["slice_metric"].replace("_", " ")
    lines = [["part of the examples", f"{report['unit']}s", f"{metric}, this model", *names]]
    for part in report["slices"]:
        cells = [number(part["baselines"][name]) for name in names]
        lines.append([part["slice"], number(part["units"]), with_interval(part["value"], part["interval"]), *cells])
    return lines


def sections(report: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Return (heading, table) of all tables; the first row of a table is its header."""
    title = "Metrics, with 95 % intervals" if "intervals" in report else "Metrics"
    if "unit" in report:
        title += f" over {report['units']:,} {report['unit']}s"
    tables = [(title, rows(report))]
    if report.get("slices"):
        tables.append(("Parts of the examples", slice_rows(report)))
    for heading, part in report.get("tables", {}).items():
        tables.append((heading, [part["header"], *([str(c) for c in row] for row in part["rows"])]))
    return tables


def asides(report: Mapping[str, Any]) -> list[str]:
    """Return the secondary sentences: remarks, counts and cost."""
    metric = report["primary"]["name"]
    sentences = [remark.replace(metric, metric.replace("_", " ")) for remark in report.get("remarks", [])]
    counts = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in report["counts"].items())
    sentences.append(f"Counts: {counts}.")
    if cost := report.get("cost"):
        what, latency = cost.get("of", "an answer"), cost["latency_ms"]
        sentences.append(f"Cost: {cost['parameters']:,} parameters, {latency:,.1f} ms for {what} where measured.")
    return sentences


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown without figures, for Prefect."""
    lines = [f"# {report['title']}", bullets([*report["notes"], *asides(report)])]
    for heading, (header, *body) in sections(report):
        lines += ["", f"## {heading}", "", table(header, body)]
    for heading, texts in report["samples"].items():
        lines += ["", f"## {heading}", "", bullets([harmless(text) for text in texts])]
    return "\n".join(lines) + "\n"


def page(report: Mapping[str, Any], out: Path) -> str:
    """Return the report as one self-contained HTML page with embedded figures."""
    return html.render("report.html", **content(report, out))


def content(report: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Return the values of the page's template; the figures lie in `out`."""
    return {
        "title": report["title"],
        "figures": [html.figure(facts, out) for facts in report["figures"]],
        "notes": [{"kind": "good" if " is better than " in note else "note", "text": note} for note in report["notes"]],
        "asides": asides(report),
        "tables": [(heading, header, body) for heading, (header, *body) in sections(report)],
        "samples": list(report["samples"].items()),
    }
