"""Evaluate every model beside its baselines; the result is a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from cluster.batch import contamination
from cluster.batch import evaluation as batch_evaluation
from cluster.home import store
from cluster.tracking.runs import Run
from flows.config import PipelineConfig, resolve
from flows.plan import MAX_TOKENS, Plan, make_plan
from flows.runs.prefect_artifacts import image, show, slug
from flows.runs.stage import make, warn
from gpt2.evaluation import unit_results
from gpt2.store.artifact import Artifact


def publish(name: str, report: Artifact) -> None:
    """Attach the report's page, with its figures, to the Prefect run."""
    figures = json.loads(report.file("report.json").read_text())["figures"]
    images = [f"{image(report.file(f['file']), f['title'])}\n\n{f['title']}" for f in figures]
    text = "\n\n".join([report.file("report.md").read_text(), *images])
    key, description = slug(f"report-{name}"), f"Evaluation of {name}"
    show(create_markdown_artifact, markdown=text, key=key, description=description)


def search(name: str, plan: Plan) -> Artifact:
    """Return the contamination search of a model: which held-out texts are in the training text."""

    def build(out: Path) -> dict[str, Any]:
        tokens = store().require("tokens", plan.tokens.id)
        if name in plan.tasks:
            return contamination.search_examples(name, tokens, held_out(name, plan), out)
        return contamination.search_documents(tokens, out)

    return store().make(plan.of(name).contamination, build)


def held_out(name: str, plan: Plan) -> Artifact:
    """Return the data that a model of a kind is measured on: the tokens, or the task's examples."""
    data = plan.of(name).data
    return store().require(data.kind, data.id)


@task(name="evaluate base model")
def evaluate_base(config: PipelineConfig, plan: Plan) -> Artifact:
    """Measure validation loss, perplexity and bits per byte, and write sample texts; return the report."""
    searched = search("base", plan)

    def build(out: Path, run: Run) -> dict[str, Any]:
        model, tokens = store().require("base", plan.base.id), held_out("base", plan)
        context, most = config.pretrain.context, plan.pretrained.report.spec[MAX_TOKENS]
        metrics = batch_evaluation.evaluate_base(model.path, tokens, searched, context, out, most)["metrics"]
        run.files(out, "report")
        return metrics

    report = make("evaluate-base", plan.pretrained.report, {}, build)
    publish("base", report)
    return report


@task(name="evaluate", task_run_name="evaluate {name}")
def evaluate_task(name: str, plan: Plan) -> Artifact:
    """Measure a task's model and its baselines on the same examples; return the report."""
    keys, searched = plan.tasks[name], search(name, plan)

    def build(out: Path, run: Run) -> dict[str, Any]:
        model = store().require(keys.model.kind, keys.model.id)
        report = batch_evaluation.evaluate_task(name, model.path, held_out(name, plan), searched, out)
        for warning in unit_results.warnings(report):
            warn(warning)
        run.files(out, "report")
        return report["metrics"]

    report = make(f"evaluate-{name}", keys.report, {}, build)
    publish(name, report)
    return report


@flow(name="evaluate", flow_run_name="evaluate", task_runner=ThreadPoolTaskRunner(max_workers=8))
def evaluate(config: PipelineConfig = resolve("laptop")) -> list[str]:
    """Evaluate every model beside its baselines.

    Args:
        config: the pipeline's settings.
    """
    plan = make_plan(config)
    tasks = {name: evaluate_task.submit(name, plan) for name in plan.tasks}
    base = evaluate_base.submit(config, plan)  # last: tasks take longer
    return [base.result().id, *(future.result().id for future in tasks.values())]
