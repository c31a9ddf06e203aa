"""What a person reads at the end of a run."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.home import home, running, store
from flows.plan import STAGES, Plan
from gpt2.artifact import Artifact, Key


def summarize(plan: Plan, registered: list[dict[str, Any]], console: Console) -> None:
    """Print stages, models beside their baselines, verdicts, and what to do next."""
    console.print(stage_table(plan, registered))
    console.print(model_table(plan, registered))
    for row in registered:
        console.print(f"[bold]{row['model']}[/] version {row['version']} {row['verdict']}: {row['reasons']}")
    console.print()
    console.print(next_steps(), highlight=False)


def stage_table(plan: Plan, registered: list[dict[str, Any]]) -> Table:
    """A row per artifact, with the time that making it took, now or before."""
    table = Table(title="Stages", title_justify="left")
    for column in ("stage", "result", "time", "artifact"):
        table.add_column(column, justify="right" if column == "time" else "left")
    cleaning = sum(a.info["seconds"] for key in plan.documents if (a := store().find(key)))
    for stage in STAGES:
        rows = [(what, key) for of, what, key in plan.by_stage() if of == stage and key.kind != "documents"]
        for number, (what, key) in enumerate(rows):
            artifact = store().find(key)
            seconds = (artifact.info["seconds"] if artifact else 0) + (cleaning if key == plan.corpus else 0)
            table.add_row(
                "" if number else stage, result(what, key, artifact), f"{seconds:.0f} s", f"{key.kind}/{key.id}"
            )
        table.add_section()
    for number, row in enumerate(registered):
        table.add_row("" if number else "register", row["verdict"], "", f"models:/{row['model']}/{row['version']}")
    return table


def result(what: str, key: Key, artifact: Artifact | None) -> str:
    """One line on an artifact."""
    if artifact is None:
        return f"{what}: not made"
    info = artifact.info
    if key.kind == "corpus":
        return f"{info['unique_documents']:,} documents, {info['duplicates']:,} duplicates dropped, {info['bad']:,} bad"
    if key.kind == "tokens":
        return f"{info['train_tokens']:,} tokens to train on, {info['validation_tokens']:,} to validate on"
    if key.kind == "tokenizer":
        return f"{info['vocab_size']:,} token ids"
    if "validation_loss" in info and "steps" in info:
        cost = f", {info['cost']:,.2g} {info['currency']}" if "cost" in info else ""
        return (
            f"{what}: {info['steps']} steps, {info['tokens_per_second']:,.0f} tokens/s, {info['seconds']:.0f} s{cost}"
        )
    return what


def model_table(plan: Plan, registered: list[dict[str, Any]]) -> Table:
    """A row per model and per baseline."""
    table = Table(title="Models", title_justify="left")
    for column in ("model", "metric", "value", "verdict"):
        table.add_column(column, justify="right" if column == "value" else "left")
    reports = plan.reports()
    for row in registered:
        artifact = store().find(reports[row["model"]])
        assert artifact is not None
        report = json.loads(artifact.file("report.json").read_text())
        metric = report["primary"]["name"]
        alias = "@champion" if row["verdict"] == "promoted" else "@challenger"
        table.add_row(
            f"[bold]{row['model']}[/] v{row['version']}",
            metric,
            f"[bold]{report['metrics'][metric]:.4f}[/]",
            f"{row['verdict']}, {alias}",
        )
        for name, values in report["baselines"].items():
            table.add_row(f"  baseline: {name}", "", f"{values[metric]:.4f}", "")
        table.add_section()
    return table


def next_steps() -> str:
    """How to use the models and look at what happened."""
    pages = [s["address"] for s in (running() or {"services": []})["services"] if s["address"].startswith("http")]
    lines = [
        "Use the models",
        '  gpt2 generate models:/gpt2-base@champion "This film"',
        "  gpt2 predict models:/gpt2-sentiment@champion --input posts.txt --output scored.jsonl",
        '  python -c \'import gpt2; print(gpt2.load("models:/gpt2-sentiment@champion").predict(["great flight"]))\'',
        "  gpt2 card models:/gpt2-sentiment@champion",
        "Look at what happened",
        "  gpt2 models",
        f"  {'  '.join(pages)}" if pages else "  gpt2 up    then http://127.0.0.1:4200 (runs) and :5000 (models)",
        f"Everything local is in {home()}; `make clean-state` removes it.",
    ]
    return "\n".join(lines)
