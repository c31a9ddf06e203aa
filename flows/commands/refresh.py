"""`gpt2 run refresh`: looks first, and starts something only where there may be something to do."""

from __future__ import annotations

from rich.console import Console

from cluster.home import store
from flows.config import PipelineConfig
from flows.new_data import RefreshPlan


def refresh_champion(config: PipelineConfig, dry_run: bool, console: Console) -> None:
    """Refresh; with `dry_run`, say what is new and start nothing."""
    new = RefreshPlan.of(config)
    if reason := new.nothing():
        console.print(f"Nothing to do: {reason}.", highlight=False, markup=False)
        return
    count, version = len(new.documents), new.champion.version
    told = (
        f"{count:,} of {new.files:,} source files are new or changed since the champion, gpt2-base version {version}."
    )
    console.print(told, highlight=False)
    if dry_run:
        return
    console.print("Starting Prefect and MLflow ...")
    from flows.refresh import refresh
    from flows.stage import without_tracebacks
    from flows.summary import summarize
    from flows.turns import turn

    without_tracebacks()
    with turn():
        result = refresh(config)
    if rows := result["registered"]:
        plan = new.plan(store().require("tokens", new.tokens.id))
        summarize(plan, sorted(rows, key=lambda row: row["model"]), console)
