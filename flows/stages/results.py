"""The results of a run: models beside their baselines, verdicts, costs and links on one page, and events of the
gate."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact

from cluster.home import store
from cluster.registry import promotion, versions
from cluster.tracking.runs import version_url
from flows.plan import Plan
from flows.runs import events
from flows.runs.prefect_artifacts import show
from flows.runs.stage import parent_run
from gpt2.store.artifact import Artifact, Key

FIGURES = ("seconds", "cpu_seconds", "gpu_seconds", "tokens", "joules", "cost", "currency")
COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "s": lambda info: f"{info['seconds']:,.0f}",
    "CPU s": lambda info: f"{info['cpu_seconds']:,.0f}" if "cpu_seconds" in info else "",
    "GPU s": lambda info: f"{info['gpu_seconds']:,.0f}" if info.get("gpu_seconds") else "",
    "tokens": lambda info: f"{info['tokens']:,.0f}" if "cpu_seconds" in info else "",
    "Wh": lambda info: f"{info['joules'] / 3600:,.2f}" if "joules" in info else "",
    "cost": lambda info: f"{info['cost']:,.2g} {info['currency']}" if "cost" in info else "",
}


def told(stage: str, plan: Plan, result: Any) -> list[str]:
    """Return what a stage of the pipeline came to: a sentence, or one for each model."""
    if stage == "tokenize":
        return [
            f"{documents(plan)}, {store().require('tokens', plan.tokens.id).info['train_tokens']:,} tokens to learn"
        ]
    if stage == "evaluate":
        return [f"{name}: {figure(read(key))}" for name, key in plan.reports().items()]
    if stage == "register":
        return [f"{row['model']} version {row['version']} {row['verdict']}: {row['reasons']}" for row in result]
    keys = {"base": plan.base} if stage == "pretrain" else {name: plan.tasks[name].model for name in plan.tasks}
    infos = {name: store().require(key.kind, key.id).info for name, key in keys.items()}
    return [
        f"{name}: {info.get('tokens', 0):,.0f} tokens read in {info['seconds']:,.0f} s" for name, info in infos.items()
    ]


def documents(plan: Plan) -> str:
    """Return the number of documents of the corpus, once it is encoded, as in `33,110 documents`."""
    info = store().require("tokens", plan.tokens.id).info
    return f"{info['train_documents'] + info['validation_documents']:,} documents"


def read(key: Key) -> dict[str, Any]:
    """Return the report of a key."""
    return json.loads(store().require(key.kind, key.id).file("report.json").read_text())


def figure(report: Mapping[str, Any]) -> str:
    """Return a report's primary metric beside each baseline's."""
    metric = report["primary"]["name"]
    beside = ", ".join(f"{name} {values[metric]:.4f}" for name, values in report["baselines"].items())
    return f"{metric.replace('_', ' ')} {report['metrics'][metric]:.4f}" + (f" ({beside})" if beside else "")


def publish(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> None:
    """Show the page of these registered versions (`versions.row`) as the artifact `results` of the flow run."""
    keys = plan.reports()
    reports = {row["model"]: read(keys[row["model"]]) for row in rows}
    made = [(stage, what, store().find(key)) for stage, what, key in plan.by_stage()]
    took = [(stage, what, artifact.info) for stage, what, artifact in made if artifact]
    text = page(rows, reports, {"MLflow run of the pipeline": parent_run().url}) + costs(took)
    show(
        create_markdown_artifact, markdown=text, key="results", description="Models, baselines and the gate's verdicts"
    )


def page(rows: Sequence[Mapping[str, Any]], reports: Mapping[str, Mapping[str, Any]], links: Mapping[str, str]) -> str:
    """Return Markdown with a row per version: its primary metric, that of each baseline, and the gate's reasons."""
    lines = ["# Results", "", "| model | verdict | metric | value | baselines |", "|---|---|---|---|---|"]
    for row in rows:
        report = reports[row["model"]]
        metric = report["primary"]["name"]
        baselines = ", ".join(f"{name} {values[metric]:.4f}" for name, values in report["baselines"].items())
        value = f"**{report['metrics'][metric]:.4f}**"
        link = f"[{row['model']} v{row['version']}]({version_url(row['model'], row['version'])})"
        lines.append(f"| {link} | **{row['verdict']}** | {metric.replace('_', ' ')} | {value} | {baselines} |")
    lines += ["", *(f"* {row['model']} v{row['version']} {row['verdict']}: {row['reasons']}" for row in rows)]
    return "\n".join([*lines, "", *(f"* [{text}]({url})" for text, url in links.items())]) + "\n"


def costs(took: Sequence[tuple[str, str, Mapping[str, Any]]]) -> str:
    """Return Markdown with the cost of each artifact, whenever it was made; unknown figures have empty cells."""
    columns = {title: show for title, show in COLUMNS.items() if any(show(info) for *_, info in took)}
    lines = ["", f"| stage | result | {' | '.join(columns)} |", "|---|---|" + "---:|" * len(columns)]
    for stage, what, info in took:
        lines.append("| " + " | ".join([stage, what, *(show(info) for show in columns.values())]) + " |")
    return "\n".join(lines) + "\n"


def cost_tags(model: Artifact) -> dict[str, str]:
    """Return the cost of a model's training as tags of its version (`gpt2.cost.*`)."""
    return {f"gpt2.cost.{name}": str(model.info[name]) for name in FIGURES if name in model.info}


def announce(version: Any) -> None:
    """Emit the gate's verdict on a version as an event, once: a tag of the version is the record."""
    if versions.announced(version):
        return
    row = versions.row(version)
    event = events.PROMOTED if row["verdict"] == "promoted" else events.REFUSED
    facts = {"version": row["version"], "reasons": row["reasons"], "url": version_url(version.name, version.version)}
    if events.emit_once(event, version.name, f"{version.run_id} {row['verdict']}", **facts):
        promotion.tag(version, versions.ANNOUNCED, row["verdict"])
