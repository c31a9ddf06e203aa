"""The tables that people read before and after a run: settings, size, stages, models, next steps."""

from __future__ import annotations

import json
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from cluster.home import home, running, store
from flows.config import PipelineConfig
from flows.plan import STAGES, Plan, expected, stages_done
from gpt2.store.artifact import Artifact, Key

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def describe(config: PipelineConfig, plan: Plan, console: Console) -> None:
    """Print the resolved settings, the artifacts that are done, and the predicted size."""
    console.print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), highlight=False, markup=False)
    table = Table(title="Stages", title_justify="left")
    for column in ("stage", "makes", "artifact", "state"):
        table.add_column(column, no_wrap=column == "artifact")  # an address is whole as long as other words can wrap
    takes = {(row["stage"], row["result"]): row.get("seconds") for row in expected(config, plan)}
    for stage, what, key, done in stages_done(plan, store()):
        seconds = takes.get((stage, what))
        state = "[green]done[/]" if done else "would run" if seconds is None else f"would run, about {seconds:,.0f} s"
        table.add_row(stage, what, f"{key.kind}/{key.id}", state)
    console.print(table)
    if known := [seconds for seconds in takes.values() if seconds is not None]:
        of = "" if len(known) == len(takes) else f" for the {len(known)} of {len(takes)} that were made here before"
        console.print(f"About {sum(known) / 60:,.1f} minutes{of}, one after the other, by past runs of this machine.")
    console.print(size_table(config))


def size_table(config: PipelineConfig) -> Table:
    """Return the predicted parameters, tokens, arithmetic (FLOP) and memory of pretraining as a table."""
    model, train, workers = config.model_config_with_vocabulary(), config.pretrain, config.cluster.num_workers
    table = Table(title="Size of pretraining", title_justify="left")
    table.add_column("what")
    table.add_column("predicted", justify="right")
    table.add_row("parameters", f"{model.n_parameters:,}")
    tokens = train.batch_size * train.context
    table.add_row("tokens per step", f"{tokens:,}")
    if train.steps is not None:
        flops = model.flops_per_token(train.context) * tokens * train.steps
        table.add_row("tokens in all", f"{tokens * train.steps:,}")
        table.add_row("arithmetic", f"{flops:.2e} FLOP")
    table.add_row("memory per worker", f"{memory_bytes(config) / 2**30:.1f} GiB")
    table.add_row("workers", f"{workers} x {'GPU' if config.cluster.use_gpu else 'CPU'}")
    table.add_row("checkpoint", f"{12 * model.n_parameters / 2**30:.2f} GiB")
    return table


def memory_bytes(config: PipelineConfig) -> int:
    """Return the predicted memory of a worker in bytes.

    It sums parameters, gradients, fp32 master and moments under ZeRO (Rajbhandari et al. 2020, section 3), activations
    (Korthikanti et al. 2022: about 34 bytes per token, width and layer at 16 bits) and 0.6 GiB of libraries.
    """
    model, train, cluster = config.model_config_with_vocabulary(), config.pretrain, config.cluster
    n, workers = model.n_parameters, cluster.num_workers
    from gpt2.training.engine import decided

    width = BYTES[decided(train, cluster.use_gpu).precision]
    parameters = n * width // (workers if cluster.zero_stage >= 3 else 1)
    gradients = n * width // (workers if cluster.zero_stage >= 2 else 1)
    states = 12 * n // (workers if cluster.zero_stage >= 1 else 1)
    tokens = train.micro_batch_size * train.context
    per_layer = 2 * width * model.n_embd if train.activation_checkpointing else 17 * width * model.n_embd
    return parameters + gradients + states + tokens * model.n_layer * per_layer + int(0.6 * 2**30)


def summarize(plan: Plan, registered: list[dict[str, Any]], console: Console) -> None:
    """Print the stages, models beside their baselines, verdicts, and next steps."""
    console.print(stage_table(plan, registered))
    console.print(model_table(plan, registered))
    for row in registered:
        console.print(f"[bold]{row['model']}[/] version {row['version']} {row['verdict']}: {row['reasons']}")
    console.print()
    console.print(next_steps(registered), highlight=False)


def stage_table(plan: Plan, registered: list[dict[str, Any]]) -> Table:
    """Return a table with a row per artifact and the time (s) that it took, now or before."""
    table = Table(title="Stages", title_justify="left")
    for column in ("stage", "result", "time", "artifact"):
        table.add_column(column, justify="right" if column == "time" else "left", no_wrap=column == "artifact")
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
    """Return a line on an artifact."""
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
    """Return a table with a row per model and per baseline."""
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


def address_of(row: dict[str, Any]) -> str:
    """Return the address of a registered version: by its alias if it was promoted, else by its number, as its model may
    have no champion."""
    return f"models:/{row['model']}{'@champion' if row['verdict'] == 'promoted' else '/' + str(row['version'])}"


def next_steps(registered: list[dict[str, Any]]) -> str:
    """Return the commands to use the models, and to see what happened."""
    pages = [s["address"] for s in (running() or {"services": []})["services"] if s["address"].startswith("http")]
    at = {row["model"]: address_of(row) for row in registered}
    base = at.get("gpt2-base", "models:/gpt2-base@champion")
    sentiment = at.get("gpt2-sentiment", "models:/gpt2-sentiment@champion")
    lines = [
        "Use the models",
        f'  gpt2 generate {base} "This film"',
        f"  gpt2 predict {sentiment} --input posts.txt --output scored.jsonl",
        f'  python -c \'import gpt2; print(gpt2.load("{sentiment}").predict(["great flight"]))\'',
        f"  gpt2 card {sentiment}",
        "See what happened",
        "  gpt2 models",
        f"  {'  '.join(pages)}" if pages else "  gpt2 up    then http://127.0.0.1:4200 (runs) and :5000 (models)",
        f"Everything local is in {home()}; `make clean-state` removes it.",
    ]
    return "\n".join(lines)
