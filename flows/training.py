"""What pretraining and fine-tuning share: a job on the cluster whose journal goes to the log and to MLflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.config import ClusterConfig
from cluster.tracking import Run
from cluster.train import train
from flows.stage import say, speaker
from gpt2.jobs import Job


def run_job(job: Job, cluster: ClusterConfig, run: Run) -> dict[str, Any]:
    """Train; returns the figures of the last records."""
    journal = train(job, cluster, recorder(job.name, run), say)
    last: dict[str, Any] = {}
    for record in journal:
        last |= record
    rates = [r["tokens_per_second"] for r in journal if "tokens_per_second" in r]
    return {
        "steps": last["step"],
        "train_loss": last["loss"],
        "validation_loss": last["validation_loss"],
        "tokens_per_second": sorted(rates)[len(rates) // 2],
        "peak_share": last.get("peak_share", 0.0),
    }


def recorder(name: str, run: Run) -> Callable[[dict[str, Any]], None]:
    """Takes a journal's records: a line in the log, metrics in MLflow. A continued run goes on where it stopped."""
    logged = {"loss": run.last_step("loss"), "validation_loss": run.last_step("validation_loss")}

    tell = speaker()

    def record(entry: dict[str, Any]) -> None:
        kind = "validation_loss" if "validation_loss" in entry else "loss"
        if entry["step"] <= logged[kind]:
            return
        values = {k: v for k, v in entry.items() if k not in ("step", "time")}
        run.metrics(values, entry["step"], entry.get("time"))
        tell(describe(name, entry))

    return record


def describe(name: str, entry: dict[str, Any]) -> str:
    """A journal's record for people."""
    if "validation_loss" in entry:
        return f"{name}: step {entry['step']}, validation loss {entry['validation_loss']:.3f}"
    minutes, seconds = divmod(round(entry["seconds_left"]), 60)
    peak = f", {entry['peak_share']:.0%} of peak" if "peak_share" in entry else ""
    return (
        f"{name}: step {entry['step']}, loss {entry['loss']:.3f}, {entry['tokens_per_second']:,.0f} tokens/s"
        f"{peak}, {minutes}:{seconds:02d} left"
    )
