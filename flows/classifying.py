"""A file of labelled texts becomes a registered model: split, learned by a pretrained model, measured, judged."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner

from cluster.connect import disconnect
from cluster.home import store
from cluster.lineage import Lineage
from cluster.stopping import politely
from cluster.tracking import end_dead
from flows import results
from flows.classifier import TASK, ClassifierConfig, pipeline_settings, plan_of, pretrained
from flows.config import PipelineConfig
from flows.endings import HOOKS, or_cancelled
from flows.evaluation import evaluate_task
from flows.finetuning import finetune_all, prepare_examples
from flows.forms import duplicate, leaving_in_time
from flows.pipeline import pipeline
from flows.plan import Plan
from flows.registration import register_model
from flows.stage import parent_run, say, without_tracebacks
from flows.turns import claim, turn
from gpt2.artifact import Artifact, digest


@task(name="prepare examples")
def prepare(settings: PipelineConfig, plan: Plan) -> Artifact:
    """Read the file, leave out what can't be learned from, and split the rest."""
    return prepare_examples(TASK, settings, plan)


@flow(name="train-classifier", task_runner=ThreadPoolTaskRunner(max_workers=8), **HOOKS)
def train_classifier(config: ClassifierConfig) -> Any:
    """A file of labelled texts becomes a model of its own. What is done already is not done again.

    Args:
        config: The file, which columns it has, and what learns from it.
    """
    without_tracebacks()
    try:
        base = pretrained(config.base)
        settings = pipeline_settings(config, base)
        plan = plan_of(settings, base)
    except ValueError as error:
        return Failed(message=f"refused: {error}")
    end_dead()
    with claim(f"classifier-{digest([plan.tasks[TASK].registered, plan.tasks[TASK].examples.id])[:16]}") as holder:
        if holder is not None:
            return duplicate(holder)
        with leaving_in_time(), turn():
            return or_cancelled(lambda: learn(config, base, prepare(settings, plan)))


def learn(config: ClassifierConfig, base: Lineage | None, examples: Artifact) -> dict[str, Any]:
    """The flow's body, once the examples are there and say how long training is."""
    settings = pipeline_settings(config, base, examples.info["train"])
    plan = plan_of(settings, base)
    if base is None:
        say("there is no gpt2-base yet: one is pretrained first")
        rows = pipeline.fn(settings)["registered"]
    else:
        rows = fine_tuned(settings, plan)
    report = store().require(plan.tasks[TASK].report.kind, plan.tasks[TASK].report.id)
    return {"registered": rows, "report": str(report.file("report.html"))}


def fine_tuned(settings: PipelineConfig, plan: Plan) -> list[dict[str, Any]]:
    """From the pretrained model to a registered one; the registry's rows."""
    run = parent_run()
    run.params(settings.model_dump(mode="json"))
    try:
        with politely():
            finetune_all(settings, plan)
        evaluate_task.submit(TASK, plan).result()
        rows = [register_model(TASK, settings, plan)]
        results.publish(plan, rows)
    except BaseException as error:
        run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    finally:
        disconnect()
    run.end()
    return rows
