"""Pretraining and fine-tuning: a job on the cluster whose journal goes to the log and to MLflow.

Tasks are fine-tuned at the same time if the cluster has room.
"""

from __future__ import annotations

import contextvars
import datetime
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from cluster.batch.evaluation import token_files
from cluster.checkpoints.files import earlier
from cluster.config import ClusterConfig
from cluster.connect import connect, dashboard, jobs_at_once, ray_tags
from cluster.home import store
from cluster.tracking.runs import Run, Sender
from cluster.training.follow import JournalFollower, event_key
from cluster.training.launch import train
from cluster.training.stopping import BudgetExceeded, politely
from cluster.training.usage import MEMORY, USAGE, metrics
from flows.config import PipelineConfig, resolve
from flows.plan import Plan, local_source, make_plan
from flows.runs import events
from flows.runs.prefect_artifacts import Live, draw, show, slug
from flows.runs.stage import make, say, speaker
from gpt2.data.sources import left_out
from gpt2.store.artifact import Artifact
from gpt2.store.model_files import MODEL
from gpt2.tasks.task import task as task_of
from gpt2.training.config import BudgetConfig
from gpt2.training.cost import Account, account, cost, describe_failure
from gpt2.training.journal import EVENTS, read_journal
from gpt2.training_job import TrainingJob


def prepare_examples(name: str, config: PipelineConfig, plan: Plan) -> Artifact:
    """Return the task's examples, split into training, validation and test."""
    keys, settings = plan.tasks[name], config.task_settings()[name]

    def prepare(out: Path, run: Run) -> dict[str, Any]:
        places = {what: local_source(place) for what, place in settings.sources().items()}
        if others := left_out(list(settings.sources().values())):
            say(f"{name} examples: {others}")
        source = places.pop("source")
        return task_of(name).prepare(settings.model_copy(update=places), source, out)

    return make(f"{name}-examples", keys.data, settings.model_dump(mode="json"), prepare)


@task(name="fine-tune", task_run_name="fine-tune {name}")
def finetune_task(name: str, config: PipelineConfig, plan: Plan) -> Artifact:
    """Prepare the task's examples and fine-tune the pretrained model on them; return the model."""
    keys, settings = plan.tasks[name], config.task_settings()[name]
    examples = prepare_examples(name, config, plan)

    def build(out: Path, run: Run) -> dict[str, Any]:
        base = store().require("base", plan.base.id)
        tokenizer = store().require("tokenizer", plan.tokenizer.id)
        job = TrainingJob(
            name=name,
            train=settings.train,
            tokenizer=str(tokenizer.path),
            output=str(out),
            base=str(base.path / MODEL),
            examples=str(examples.path),
            adaptation=settings.adaptation,
            distil=getattr(settings, "distil", None),
            teacher=str(store().require(name, keys.teacher).path / MODEL) if keys.teacher else None,
            earlier=earlier(name, settings.train.continue_from, config.cluster.checkpoint_url),
        )
        return run_job(job, config.task_cluster(name), run, config.budget)

    return make(f"finetune-{name}", keys.model, config.model_dump(mode="json"), build)


@flow(name="finetune", flow_run_name="finetune", task_runner=ThreadPoolTaskRunner(max_workers=8))
def finetune(config: PipelineConfig = resolve("laptop")) -> list[str]:
    """Fine-tune the pretrained model on each downstream task.

    Args:
        config: the pipeline's settings; this stage reads `tasks` and `cluster`.
    """
    return finetune_all(config, make_plan(config))


def finetune_all(config: PipelineConfig, plan: Plan) -> list[str]:
    """Fine-tune all tasks, as many at a time as the cluster holds; return the ids of the models."""
    names = list(plan.tasks)
    if all(store().find(k.model) and store().find(k.data) for k in plan.tasks.values()):
        width = len(names)
    else:
        connect()
        width = jobs_at_once([config.task_cluster(name) for name in names])
        say(f"{len(names)} tasks, {min(width, len(names))} at a time")
    ids = []
    with politely():
        for start in range(0, len(names), max(width, 1)):
            futures = [finetune_task.submit(name, config, plan) for name in names[start : start + width]]
            ids += [future.result().id for future in futures]
    return ids


@task(name="train base model")
def train_base(config: PipelineConfig, plan: Plan) -> Artifact:
    """Pretrain on the token shards; return the model."""

    def build(out: Path, run: Run) -> dict[str, Any]:
        tokens = store().require("tokens", plan.tokens.id)
        tokenizer = store().require("tokenizer", plan.tokenizer.id)
        files = token_files(tokens)
        config.pretrain.total_steps(max(0, tokens.info["train_tokens"] - 1) // config.pretrain.context)
        job = TrainingJob(
            name="base",
            train=config.pretrain,
            tokenizer=str(tokenizer.path),
            output=str(out),
            model=config.model_config_with_vocabulary(),
            tokens=files,
            earlier=earlier("base", config.pretrain.continue_from, config.cluster.checkpoint_url),
        )
        return run_job(job, config.cluster, run, config.budget)

    return make("pretrain", plan.base, config.model_dump(mode="json"), build)


@flow(name="pretrain", flow_run_name="pretrain")
def pretrain(config: PipelineConfig = resolve("laptop")) -> str:
    """Train GPT-2 on the token shards.

    Args:
        config: the pipeline's settings; this stage reads `model`, `pretrain` and `cluster`.
    """
    with politely():
        return train_base(config, make_plan(config)).id


def run_job(job: TrainingJob, cluster: ClusterConfig, run: Run, budget: BudgetConfig) -> dict[str, Any]:
    """Train a job, and record it in MLflow and Prefect; return the figures of its last records."""
    output = Path(job.output)
    connect()
    run.tag(ray_tags())
    if url := dashboard():
        show(create_link_artifact, link=url, link_text="Ray dashboard", key=slug(f"ray-{job.name}"))
    announcing = JournalFollower(output / EVENTS, event_key, announcer(job.name))
    try:
        with Live(job.name, output), Sender(run) as sender, announcing:
            on_record, on_usage = recorder(job.name, run, sender), system_recorder(cluster, run, sender)
            journal = train(job, cluster, on_record, speaker(), on_usage, budget)
    except BudgetExceeded as error:
        events.emit_for_training(events.BUDGET, job.name, reason=str(error))
        raise
    times = account(journal, read_journal(output / EVENTS))
    publish_account(job.name, times, run)
    expense = cost(read_journal(output / USAGE), journal, budget)
    say(f"{job.name}: took {expense}")
    with tempfile.TemporaryDirectory() as folder:
        run.files(draw(journal, Path(folder)))
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
        **times.metrics(),
        **expense.metrics(),
        **({"currency": expense.currency} if expense.money is not None else {}),
    }


def publish_account(name: str, times: Account, run: Run) -> None:
    """Report how the time of a training was spent: in the log, in MLflow and on the flow run."""
    restarts = f", {len(times.restarts)} restarts" if times.restarts else ""
    say(f"{name}: {times.goodput:.0%} of {times.wall:.0f} s went into steps that count{restarts}")
    for restart in times.restarts:
        say(f"{name}: restarted at {clock(restart.time)} after {restart.cause}: {restart.seconds:.0f} s lost")
    text = page(name, times)
    run.text(text, "time.md")
    description = f"Where the time of training {name} went"
    show(create_markdown_artifact, markdown=text, key=slug(f"time-of-{name}"), description=description)


def page(name: str, times: Account) -> str:
    """Return the use of time as Markdown."""
    useful = times.wall * times.goodput
    rows = [("steps that count", useful), *((what, s) for what, s in times.lost.items() if s >= 0.05)]
    lines = [f"# {name}: goodput {times.goodput:.0%}", "", "| time spent | s | share |", "|---|---|---|"]
    lines += [f"| {what} | {seconds:.1f} | {seconds / max(times.wall, 1e-9):.0%} |" for what, seconds in rows]
    if times.restarts:
        lines += ["", "| restart | cause | noticed after | workers back | state loaded | steps again | lost |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for r in times.restarts:
            parts = [f"{v:.1f} s" for v in (r.detect, r.restart, r.reload, r.recompute, r.seconds)]
            lines.append(f"| {clock(r.time)} | {r.cause} | " + " | ".join(parts) + " |")
    if times.bad_steps:
        lines += ["", f"{times.bad_steps} steps were left out because of their gradient."]
    return "\n".join(lines) + "\n"


def clock(time: float) -> str:
    """Return a time (s since 1970) as local date and time."""
    return datetime.datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def recorder(name: str, run: Run, sender: Sender) -> Callable[[dict[str, Any]], None]:
    """Return a function that takes a journal's records, logs them and sends their metrics to MLflow.

    A continued run skips the records that MLflow already has.
    """
    logged = {"loss": run.last_step("loss"), "validation_loss": run.last_step("validation_loss")}

    log = speaker()

    def record(entry: dict[str, Any]) -> None:
        kind = "validation_loss" if "validation_loss" in entry else "loss"
        if entry["step"] <= logged[kind]:
            return
        values = {k: v for k, v in entry.items() if k not in ("step", "time", "tokens")}  # their sum is sent at the end
        sender.put(values, entry["step"], entry.get("time"))
        if text := describe(name, entry):
            log(text)

    return record


def announcer(name: str) -> Callable[[dict[str, Any]], None]:
    """Return a function that takes a training's events, and emits a Prefect event for each restart."""
    begun, context = time.time(), contextvars.copy_context()  # that of the flow run
    failures: list[dict[str, Any]] = []

    def announce(event: dict[str, Any]) -> None:
        if event["time"] < begun:
            return
        if event["event"] in ("failure", "hang"):
            failures.append(event)
        elif event["event"] == "begin" and failures:
            context.run(events.emit_for_training, events.RESTARTED, name, cause=describe_failure(failures[0]))
            failures.clear()

    return announce


def system_recorder(cluster: ClusterConfig, run: Run, sender: Sender) -> Callable[[dict[str, Any]], None]:
    """Return a function that takes samples of the resources in use and sends them to MLflow; a step is a second.

    Samples that MLflow already has are skipped.
    """
    processes = ["driver", *(f"rank{rank}" for rank in range(cluster.num_workers))]
    continued = run.last_step("loss") > 0
    known = {who: run.last_step(f"system/{who}/{MEMORY}") if continued else -1 for who in processes}
    first: dict[str, float] = {}
    latest: dict[str, dict[str, Any]] = {}

    def record(sample: dict[str, Any]) -> None:
        who = sample["who"]
        step = round(sample["time"] - first.setdefault(who, sample["time"]))
        if step > known.get(who, -1):
            sender.put(metrics(sample, latest.get(who)), step, sample["time"])
        latest[who] = sample

    return record


def describe(name: str, entry: dict[str, Any]) -> str | None:
    """Return a sentence on a journal's record; None for a skipped step, which has an event."""
    if "validation_loss" in entry:
        return f"{name}: step {entry['step']}, validation loss {entry['validation_loss']:.3f}"
    if "loss" not in entry:
        return None
    minutes, seconds = divmod(round(entry["seconds_left"]), 60)
    peak = f", {entry['peak_share']:.0%} of peak" if "peak_share" in entry else ""
    return (
        f"{name}: step {entry['step']}, loss {entry['loss']:.3f}, {entry['tokens_per_second']:,.0f} tokens/s"
        f"{peak}, {minutes}:{seconds:02d} left"
    )
