"""Data of one's own become a registered model: read, learned by a pretrained model, measured, judged."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner

from cluster.home import store
from cluster.lineage import Lineage
from cluster.stopping import politely
from cluster.tracking import end_dead
from flows import results
from flows.config import PipelineConfig
from flows.endings import HOOKS, or_cancelled
from flows.evaluation import evaluate_task
from flows.finetuning import finetune_all, prepare_examples
from flows.forms import duplicate, leaving_in_time
from flows.learner import (
    ClassifierConfig,
    Learner,
    RecommenderConfig,
    asked,
    pipeline_settings,
    plan_of,
    pretrained,
    with_examples,
)
from flows.pipeline import pipeline
from flows.plan import Plan
from flows.registration import register_model
from flows.stage import parent_of_all, say, without_tracebacks
from flows.turns import claim, turn
from gpt2.artifact import Artifact, digest


@task(name="prepare examples")
def prepare(name: str, settings: PipelineConfig, plan: Plan) -> Artifact:
    """Read the data, leave out what can't be learned from, and split the rest."""
    return prepare_examples(name, settings, plan)


@flow(name="train-classifier", task_runner=ThreadPoolTaskRunner(max_workers=8), **HOOKS)
def train_classifier(config: ClassifierConfig) -> Any:
    """A file of labelled texts becomes a model of its own. What is done already is not done again.

    Args:
        config: The file, which columns it has, and what learns from it.
    """
    return learned(config)


@flow(name="train-recommender", task_runner=ThreadPoolTaskRunner(max_workers=8), **HOOKS)
def train_recommender(config: RecommenderConfig) -> Any:
    """A catalogue and what people chose of it become a model of its own. What is done already is not done again.

    Args:
        config: The two files, which columns they have, and what learns from them.
    """
    return learned(config)


def learned(config: Learner) -> Any:
    """The body of both flows: one at a time of those that train, equal ones once."""
    without_tracebacks()
    try:
        base = pretrained(config.base)
        settings = pipeline_settings(config, base)
        plan = plan_of(settings, base)
    except ValueError as error:
        return Failed(message=f"refused: {error}")
    end_dead()
    keys = plan.tasks[config.task]
    with claim(f"{config.task}-{digest([keys.registered, keys.examples.id])[:16]}") as holder:
        if holder is not None:
            return duplicate(holder)
        with leaving_in_time():
            return or_cancelled(lambda: in_turn(config, base, settings, plan))


def in_turn(config: Learner, base: Lineage | None, settings: PipelineConfig, plan: Plan) -> dict[str, Any]:
    """Whoever gave a file that can't be learned from is told at once, not after those that train now."""
    examples = prepare(config.task, settings, plan)
    with turn():
        return learn(config, base, examples)


def learn(config: Learner, base: Lineage | None, examples: Artifact) -> dict[str, Any]:
    """All that follows the examples, which say how long training is."""
    settings = with_examples(config, base, examples)
    plan = plan_of(settings, base, asked(config))
    if base is None:
        say("there is no gpt2-base yet: one is pretrained first")
        rows = pipeline.fn(settings)["registered"]
    else:
        rows = fine_tuned(config.task, settings, plan)
    report = plan.tasks[config.task].report
    made = store().require(report.kind, report.id)
    return {"registered": rows, "report": str(made.file("report.html"))}


def fine_tuned(name: str, settings: PipelineConfig, plan: Plan) -> list[dict[str, Any]]:
    """From the pretrained model to a registered one; the registry's rows."""
    with parent_of_all() as run:
        run.params(settings.model_dump(mode="json"))
        with politely():
            finetune_all(settings, plan)
        evaluate_task.submit(name, plan).result()
        rows = [register_model(name, settings, plan)]
        results.publish(plan, rows)
    return rows
