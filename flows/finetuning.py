"""Downstream tasks from the pretrained model, at the same time where the cluster has room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from cluster.connect import connect, jobs_at_once
from cluster.home import store
from cluster.kept import earlier
from cluster.stopping import politely
from cluster.tracking import Run
from flows.config import PipelineConfig, resolve
from flows.plan import Plan, local_source, make_plan
from flows.stage import make, say
from flows.training import run_job
from gpt2.artifact import Artifact
from gpt2.jobs import Job
from gpt2.task import task as task_of
from gpt2.weights import MODEL


def prepare_examples(name: str, config: PipelineConfig, plan: Plan) -> Artifact:
    """The task's examples, split."""
    keys, settings = plan.tasks[name], config.task_settings()[name]

    def prepare(out: Path, run: Run) -> dict[str, Any]:
        places = {what: local_source(place) for what, place in settings.sources().items()}
        source = Path(places.pop("source"))
        return task_of(name).prepare(settings.model_copy(update=places), source, out)

    return make(f"{name}-examples", keys.examples, settings.model_dump(mode="json"), prepare)


@task(name="fine-tune", task_run_name="fine-tune {name}")
def finetune_task(name: str, config: PipelineConfig, plan: Plan) -> Artifact:
    """Prepare the task's examples and train from the pretrained model."""
    keys, settings = plan.tasks[name], config.task_settings()[name]
    examples = prepare_examples(name, config, plan)

    def build(out: Path, run: Run) -> dict[str, Any]:
        base = store().require("base", plan.base.id)
        tokenizer = store().require("tokenizer", plan.tokenizer.id)
        job = Job(
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


@flow(name="finetune", task_runner=ThreadPoolTaskRunner(max_workers=8))
def finetune(config: PipelineConfig = resolve("laptop")) -> list[str]:
    """The pretrained model learns each downstream task.

    Args:
        config: the pipeline's settings; this stage reads `tasks` and `cluster`.
    """
    return finetune_all(config, make_plan(config))


def finetune_all(config: PipelineConfig, plan: Plan) -> list[str]:
    """Each task's training, in a flow; ids of the models."""
    names = list(plan.tasks)
    if all(store().find(k.model) and store().find(k.examples) for k in plan.tasks.values()):
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
