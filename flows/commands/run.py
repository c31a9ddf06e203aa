"""`gpt2 run` and `gpt2 run refresh`; a refresh looks first, and starts something only if there may be new text."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from flows.commands.console import prefect
from flows.commands.console import tables as out

if TYPE_CHECKING:
    from rich.console import Console

    from flows.config import PipelineConfig

Stage = Literal["pipeline", "tokenize", "pretrain", "finetune", "evaluate", "register", "refresh"]


def run(
    stage: Stage = "pipeline",
    *,
    preset: str = "laptop",
    config: Path | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
):
    """Run the whole pipeline or one stage; `refresh` continues training on new documents. Finished work is not
    repeated.

    Example: gpt2 run --preset laptop --set pretrain.steps=500

    Args:
        stage: the part to run.
        preset: settings to start from: laptop, laptop-long, laptop-modern, smoke, gpt2, gpt2-medium,
            gpt2-large, gpt2-xl.
        config: a YAML file whose settings override the preset's.
        set_: a setting, as in pretrain.optimizer.learning_rate=1e-3; may be given several times.
        dry_run: print the resolved settings, the stages that would run and their size; start nothing.
    """
    from flows.config import resolve
    from flows.plan import make_plan

    settings = resolve(preset, config, set_ or ())
    if stage == "refresh":
        refresh_champion(settings, dry_run, out)
        return
    plan = make_plan(settings)
    if dry_run:
        from flows.commands.summary import describe

        describe(settings, plan, out)
        return
    from flows.commands.summary import summarize
    from flows.plan import registered_before

    if stage == "pipeline" and (rows := registered_before(plan)):
        out.print("Nothing to do: every stage was done before.")
        summarize(plan, rows, out)
        return
    from flows.runs import services

    out.print("Starting Prefect, Ray and MLflow ...")
    services.start(settings)
    from flows.pipeline import STORY, pipeline
    from flows.runs.locks import turn
    from flows.runs.stage import without_tracebacks

    without_tracebacks()
    if stage != "pipeline":
        from cluster.connect import disconnect
        from flows.runs.ending import HOOKS

        try:
            with turn() if stage in ("pretrain", "finetune") else contextlib.nullcontext():
                out.print(STORY[stage].with_options(**HOOKS)(settings))
        finally:
            disconnect()
        return
    from flows.runs.names import called, places

    name = called(f"pipeline {config.stem if config else preset}", places(settings.corpus.sources))
    with turn():
        result = pipeline.with_options(flow_run_name=name)(settings)
    summarize(plan, result["registered"], out)


def refresh_champion(config: PipelineConfig, dry_run: bool, console: Console) -> None:
    """Refresh the champion; with `dry_run`, print what is new and start nothing."""
    from flows.jobs.refresh_plan import RefreshPlan

    new = RefreshPlan.of(config)
    if reason := new.nothing():
        console.print(f"Nothing to do: {reason}.", highlight=False, markup=False)
        return
    count, version = len(new.documents), new.champion.version
    summary = (
        f"{count:,} of {new.files:,} source files are new or changed since the champion, gpt2-base version {version}."
    )
    console.print(summary, highlight=False)
    if dry_run:
        return
    console.print("Starting Prefect and MLflow ...")
    from cluster.home import store
    from flows.commands.summary import summarize
    from flows.jobs.refresh import refresh
    from flows.runs.locks import turn

    with prefect(), turn():
        result = refresh(config)
    if rows := result["registered"]:
        plan = new.plan(store().require("tokens", new.tokens.id))
        summarize(plan, sorted(rows, key=lambda row: row["model"]), console)
