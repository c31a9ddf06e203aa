"""The flows `train-classifier` and `train-recommender`: your own data become a registered model."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from cluster.home import store
from cluster.training.stopping import politely
from flows.config import PipelineConfig
from flows.jobs.own_data_plan import ClassifierConfig, OwnDataPlan, RecommenderConfig
from flows.pipeline import pipeline
from flows.plan import Plan
from flows.runs.ending import HOOKS, carry_out
from flows.runs.locks import turn
from flows.runs.stage import parent_of_all, say
from flows.stages import results
from flows.stages.evaluation import evaluate_task
from flows.stages.registration import register_model
from flows.stages.training import finetune_all, prepare_examples
from gpt2.store.artifact import Artifact


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
    return carry_out(lambda: OwnDataPlan.of(config), in_turn)


@flow(name="train-recommender", task_runner=ThreadPoolTaskRunner(max_workers=8), **HOOKS)
def train_recommender(config: RecommenderConfig) -> Any:
    """A catalogue and what people chose of it become a model of its own. What is done already is not done again.

    Args:
        config: The two files, which columns they have, and what learns from them.
    """
    return carry_out(lambda: OwnDataPlan.of(config), in_turn)


def in_turn(own: OwnDataPlan) -> dict[str, Any]:
    """The body of both flows: a file that can't be learned from is refused at once, not after those that train now."""
    examples = prepare(own.config.task, own.settings, own.plan)
    with turn():
        return learn(own.with_examples(examples))


def learn(own: OwnDataPlan) -> dict[str, Any]:
    """All that follows the examples."""
    if own.base is None:
        say("there is no gpt2-base yet: one is pretrained first")
        rows = pipeline.fn(own.settings)["registered"]
    else:
        rows = fine_tuned(own.config.task, own.settings, own.plan)
    made = store().require(own.keys.report.kind, own.keys.report.id)
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
