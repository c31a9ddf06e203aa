"""`gpt2 run`, `gpt2 run refresh` and `gpt2 search`.

A refresh looks first, and starts something only if there may be new text.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from flows.commands.console import Changes, out, prefect, tables

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
        refresh_champion(settings, dry_run, tables)
        return
    plan = make_plan(settings)
    if dry_run:
        from flows.commands.summary import describe

        describe(settings, plan, tables)
        return
    from flows.commands.summary import summarize
    from flows.plan import registered_before

    if stage == "pipeline" and (rows := registered_before(plan)):
        tables.print("Nothing to do: every stage was done before.")
        summarize(plan, rows, tables)
        return
    from flows.runs import services

    tables.print("Starting Prefect, Ray and MLflow ...")
    services.start(settings)
    from flows.pipeline import STORY, pipeline
    from flows.runs.ending import turn
    from flows.runs.stage import without_tracebacks

    without_tracebacks()
    if stage != "pipeline":
        from cluster.connect import disconnect
        from flows.runs.ending import HOOKS

        try:
            with turn() if stage in ("pretrain", "finetune") else contextlib.nullcontext():
                tables.print(STORY[stage].with_options(**HOOKS)(settings))
        finally:
            disconnect()
        return
    from flows.runs.prefect_artifacts import called, places

    name = called(f"pipeline {config.stem if config else preset}", places(settings.corpus.sources))
    with turn():
        result = pipeline.with_options(flow_run_name=name)(settings)
    summarize(plan, result["registered"], tables)


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
    from flows.runs.ending import turn

    with prefect(), turn():
        result = refresh(config)
    if rows := result["registered"]:
        plan = new.plan(store().require("tokens", new.tokens.id))
        summarize(plan, sorted(rows, key=lambda row: row["model"]), console)


def search(
    task: str,
    *,
    preset: str | None = None,
    trials: int | None = None,
    max_steps: int | None = None,
    config: Path | None = None,
    set_: Changes = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
):
    """Search better fine-tuning settings of a task, by its validation loss; weak candidates are stopped early.

    The best settings become a file for `--config` of `gpt2 run` and of the task's own command, and for the form. The
    test split is not used.

    Example: gpt2 search sentiment --trials 8 --set 'space={train.batch_size: [16, 32, 64]}'

    Args:
        task: sentiment, recommendation, reasons, support, or one of yours.
        preset: settings to start from, as for `gpt2 run`; they are the first candidate.
        trials: number of candidates.
        max_steps: steps of a candidate that is not stopped early.
        config: a YAML file of settings (`flows.jobs.search_plan`).
        set_: a setting, as in seed=1 or parallel=1; may be given several times.
        dry_run: print the candidates; start nothing.
    """
    import json

    from rich.table import Table

    from cluster.home import store
    from flows.config import settings
    from flows.jobs.search_plan import COMMANDS, SearchConfig, SearchPlan
    from flows.jobs.search_plan import table as rows_of
    from flows.runs import services

    given = {"task": task, "preset": preset, "trials": trials, "max_steps": max_steps}
    plan = SearchPlan.of(settings(SearchConfig, given, config, set_ or ()))
    steps = f"{plan.steps} steps where they are not stopped early"
    out.print(f"{len(plan.candidates)} candidates for {plan.config.task}, {steps}; the first is the preset's own")
    if dry_run:
        for number, candidate in enumerate(plan.candidates):
            drawn = ", ".join(f"{path}={value}" for path, value in candidate.drawn.items())
            out.print(f"{number}: {drawn or 'the preset'}", markup=False)
        return
    if plan.nothing():
        out.print("Nothing to do: the search was done before.")
    else:
        out.print("Starting Prefect, Ray and MLflow ...")
        services.start(plan.candidates[0].settings)
        from flows.jobs.search import search as run

        run(plan.config)
    made = store().find(plan.key)
    if made is None:
        return  # another run is doing it, as the log says
    rows = rows_of(json.loads(made.file("candidates.json").read_text()))
    shown = Table()
    for column in rows[0]:
        shown.add_column(column)
    for row in rows:
        shown.add_row(*map(str, row.values()), style="bold" if row["candidate"] == made.info["best"] else None)
    out.print(shown)
    out.print(f"The best: {made.file('best.yaml')}", markup=False)
    for command in ("run", *filter(None, [COMMANDS.get(plan.config.task)])):
        usage = f"Use it: gpt2 {command} --preset {plan.config.preset} --config {made.file('best.yaml')}"
        out.print(usage, markup=False)
