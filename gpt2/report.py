"""A report: JSON for machines, one page for people."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2 import plots

REQUIRED = ("task", "title", "primary", "floor", "metrics", "baselines", "counts", "samples", "figures")
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.3rem .9rem;border-bottom:1px solid #ddd;text-align:right;vertical-align:top;font-size:.9rem}
td{font-variant-numeric:tabular-nums}td:first-child,th:first-child,.text{text-align:left}
.note{background:#fff7e0;padding:.6rem 1rem;border-left:4px solid #e0a800}
.good{background:#e9f7ec;padding:.6rem 1rem;border-left:4px solid #2da44e}
.note,.good{margin:.4rem 0}
h2{margin:1.2rem 0 .4rem}.good h2,.note h2{margin:.2rem 0}.yes{color:#2da44e}.no{color:#c0392b}
figure{display:inline-block;margin:0 1rem 1rem 0}
figcaption{font-size:.85rem;color:#555}img{max-width:100%}li{margin:.4rem 0}
"""


def write(report: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write report.json, report.html, report.md and figures to `out`; returns the report as written.

    `report` holds `task`, `title`, `primary` {name, higher_is_better}, `floor` (a baseline's name), `metrics`,
    `baselines` {name: metrics}, `counts`, `samples` {heading: [text]}, `figures` [{file, title}] and, optionally,
    `curve`, the training's journal, what `gpt2.evidence.Evidence.summary` gives, `tables` {heading: {header, rows}},
    `remarks` and `cost` {parameters, latency_ms}. `ValueError` where a part is missing or a number is not finite.
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
    """A sentence on each baseline: whether the model is better, and how sure that is."""
    metric, up = report["primary"]["name"], report["primary"]["higher_is_better"]
    mine, told = report["metrics"][metric], []
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
        told.append(f"The model {verb} the baseline {name} on {on}: {mine:.4f} against {theirs:.4f}{by}.")
    return told


def rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The table of metrics: header, then a row per metric with the model and each baseline, with intervals."""
    names, intervals = list(report["baselines"]), report.get("intervals", {})
    table = [["metric", "this model", *names]]
    primary = report["primary"]["name"]
    for metric in sorted(report["metrics"], key=lambda metric: metric != primary):
        value = report["metrics"][metric]
        cells = [with_interval(value, intervals.get("model", {}).get(metric))]
        for name in names:
            cells.append(with_interval(report["baselines"][name].get(metric), intervals.get(name, {}).get(metric)))
        table.append([metric.replace("_", " "), *cells])
    return table


def slice_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The table of the parts of the examples: header, then a row per part."""
    names = list(report["slices"][0]["baselines"])
    metric = report["slice_metric"].replace("_", " ")
    table = [["part of the examples", f"{report['unit']}s", f"{metric}, this model", *names]]
    for part in report["slices"]:
        cells = [number(part["baselines"][name]) for name in names]
        table.append([part["slice"], number(part["units"]), with_interval(part["value"], part["interval"]), *cells])
    return table


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """A value for people, and its 95 % interval where there is one."""
    if value is None or interval is None:
        return number(value)
    digits = 3 if abs(value) < 100 else 1
    return f"{number(value)} [{interval[0]:,.{digits}f}, {interval[1]:,.{digits}f}]"


def number(value: float | None) -> str:
    """A metric's value for people."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"


def sections(report: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(heading, table) of all tables, each with its header first."""
    title = "Metrics, with 95 % intervals" if "intervals" in report else "Metrics"
    if "unit" in report:
        title += f" over {report['units']:,} {report['unit']}s"
    found = [(title, rows(report))]
    if report.get("slices"):
        found.append(("Parts of the examples", slice_rows(report)))
    for heading, table in report.get("tables", {}).items():
        found.append((heading, [table["header"], *([str(c) for c in row] for row in table["rows"])]))
    return found


def asides(report: Mapping[str, Any]) -> list[str]:
    """Sentences of less weight: remarks, counts, cost."""
    metric = report["primary"]["name"]
    told = [remark.replace(metric, metric.replace("_", " ")) for remark in report.get("remarks", [])]
    counts = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in report["counts"].items())
    told.append(f"Counts: {counts}.")
    if cost := report.get("cost"):
        of = cost.get("of", "an answer")
        told.append(f"Cost: {cost['parameters']:,} parameters, {cost['latency_ms']:,.1f} ms for {of} where measured.")
    return told


def markdown(report: Mapping[str, Any]) -> str:
    """The page without figures, for Prefect."""
    lines = [f"# {report['title']}", *(f"* {note}" for note in report["notes"])]
    lines += [f"* {aside}" for aside in asides(report)]
    for heading, (header, *body) in sections(report):
        lines += ["", f"## {heading}", "", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
        lines += ["| " + " | ".join(harmless(cell) for cell in row) + " |" for row in body]
    for heading, texts in report["samples"].items():
        lines += ["", f"## {heading}", "", *(f"* {harmless(text)}" for text in texts)]
    return "\n".join(lines) + "\n"


def harmless(text: str) -> str:
    """On one line, without a bar or a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def flat(text: str) -> str:
    """What people wrote, on one line, with nothing in it that Markdown would take for its own."""
    return harmless(text).translate({ord(c): f"\\{c}" for c in "*_`[]#"})


def page(report: Mapping[str, Any], out: Path, head: str = "") -> str:
    """One self-contained HTML page, with its figures inside; `head` is HTML that goes before all else."""
    told = "".join(
        f'<p class="{"good" if " is better than " in note else "note"}">{html.escape(note)}</p>'
        for note in report["notes"]
    )
    first, *others = [figure(f, out) for f in report["figures"]]
    tables = "".join(f"<h2>{html.escape(heading)}</h2>{html_table(table)}" for heading, table in sections(report))
    samples = "".join(
        f"<h2>{html.escape(heading)}</h2><ul>{''.join(f'<li>{html.escape(t)}</li>' for t in texts)}</ul>"
        for heading, texts in report["samples"].items()
    )
    aside = "".join(f"<li>{html.escape(text)}</li>" for text in asides(report))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(report["title"])}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(report['title'])}</h1>{head}{first}{told}"
        f"<div>{''.join(others)}</div><h2>Remarks</h2><ul>{aside}</ul>{tables}{samples}</html>\n"
    )


def figure(facts: Mapping[str, str], out: Path) -> str:
    """An image inside the page."""
    title = html.escape(facts["title"])
    return (
        f'<figure><img alt="{title}" src="data:image/png;base64,{encoded(out / facts["file"])}">'
        f"<figcaption>{title}</figcaption></figure>"
    )


def html_table(table: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the header; columns of figures stand right."""
    header, *body = table
    texts = [i for i in range(len(header)) if not all(numeric(row[i]) for row in body)]

    def line(row: Sequence[str], tag: str) -> str:
        whole = [cell if i in texts else cell.replace(", ", ",\xa0") for i, cell in enumerate(row)]  # an interval
        cells = [(' class="text"' if i in texts else "", html.escape(cell)) for i, cell in enumerate(whole)]
        return "<tr>" + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in body)}</table>"


def numeric(cell: str) -> bool:
    """Whether it is a figure, perhaps with an interval, and no words that begin with one."""
    return not cell or (cell[0] in "+-0123456789" and not re.search(r"[^\W\d_]{2}", cell))


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
