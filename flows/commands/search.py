"""`gpt2 search`: better fine-tuning settings of a task, as a file for `gpt2 run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands.console import Changes, out


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
