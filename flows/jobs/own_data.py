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
from flows.runs.ending import HOOKS, carry_out, turn
from flows.runs.prefect_artifacts import called, named, place
from flows.runs.stage import parent_of_all, say
from flows.stages import results
from flows.stages.evaluation import evaluate_task
from flows.stages.registration import register_model
from flows.stages.training import finetune_all, prepare_examples
from gpt2.store.artifact import Artifact


@task(name="prepare examples")
def prepare(name: str, settings: PipelineConfig, plan: Plan) -> Artifact:
    """Read the data, leave out unusable rows, and split the rest."""
    return prepare_examples(name, settings, plan)


@flow(
    name="train-classifier",
    flow_run_name=named(lambda config: called(f"classifier gpt2-{config.registered_as()}", place(config.source))),
    task_runner=ThreadPoolTaskRunner(max_workers=8),
    **HOOKS,
)
def train_classifier(config: ClassifierConfig) -> Any:
    """Train and register a classifier on a file of labelled texts. Finished work is not repeated.

    Args:
        config: The file, its columns, and how the model is trained.
    """
    return carry_out(lambda: OwnDataPlan.of(config), in_turn)


@flow(
    name="train-recommender",
    flow_run_name=named(
        lambda config: called(
            f"recommender gpt2-{config.registered_as()}", *map(place, (config.source, config.interactions))
        )
    ),
    task_runner=ThreadPoolTaskRunner(max_workers=8),
    **HOOKS,
)
def train_recommender(config: RecommenderConfig) -> Any:
    """Train and register a recommender on a catalogue and on users' choices from it. Finished work is not repeated.

    Args:
        config: The two files, their columns, and how the model is trained.
    """
    return carry_out(lambda: OwnDataPlan.of(config), in_turn)


def in_turn(own: OwnDataPlan) -> dict[str, Any]:
    """Prepare the examples, then train in turn. So an unusable file is refused at once, before waiting for other
    trainings."""
    examples = prepare(own.config.task, own.settings, own.plan)
    with turn():
        return learn(own.with_examples(examples))


def learn(own: OwnDataPlan) -> dict[str, Any]:
    """Train, evaluate and register the model, once the examples exist; return the registry's rows and the report."""
    if own.base is None:
        say("there is no gpt2-base yet: one is pretrained first")
        rows = pipeline.fn(own.settings)["registered"]
    else:
        rows = fine_tuned(own.config.task, own.settings, own.plan)
    made = store().require(own.keys.report.kind, own.keys.report.id)
    return {"registered": rows, "report": str(made.file("report.html"))}


def fine_tuned(name: str, settings: PipelineConfig, plan: Plan) -> list[dict[str, Any]]:
    """Fine-tune, evaluate and register a task's model; return the registry's rows."""
    with parent_of_all() as run:
        run.params(settings.model_dump(mode="json"))
        with politely():
            finetune_all(settings, plan)
        evaluate_task.submit(name, plan).result()
        rows = [register_model(name, settings, plan)]
        results.publish(plan, rows)
    return rows
