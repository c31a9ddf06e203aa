"""Register models: a new version each, judged by the gate, which moves the alias of the champion."""

from __future__ import annotations

import json
from typing import Any

from prefect import flow, task
from prefect.runtime import flow_run

from cluster.home import store
from cluster.registry import promotion, versions
from cluster.tracking.runs import Run
from flows.config import PipelineConfig, resolve
from flows.plan import Plan, make_plan
from flows.runs.stage import commit_tag, recorded, say
from flows.stages import gate, provenance, results
from flows.stages.gate import read_report, report_of
from gpt2.gate import verdict as gate_verdict
from gpt2.store.artifact import Artifact
from gpt2.store.model_files import MODEL
from gpt2.tasks.task import kind


@task(name="register", task_run_name="register {name}")
def register_model(name: str, config: PipelineConfig, plan: Plan) -> dict[str, Any]:
    """Register a model and let the gate compare it with the champion; return the registry's row."""
    keys = plan.of(name)
    registered = keys.registered
    made = store().require(keys.report.kind, keys.report.id)
    report = json.loads(made.file("report.json").read_text())
    version = versions.by_artifact(registered, keys.model.id)
    if version is None or not versions.judged(version):
        model = store().require(keys.model.kind, keys.model.id)
        inputs = {"model": keys.model.id, "report": keys.report.id}
        with recorded(f"register-{name}", keys.report.id, {}, inputs) as run:
            run.metrics(report["metrics"])
            version = version or new_version(name, model, config, plan, report, run)
            versions.challenge(registered, version)

            def measure(other: Any) -> dict[str, Any]:
                own = other.tags.get(versions.ARTIFACT_TAG) == keys.model.id
                return read_report(made, other) if own else report_of(other, name, plan, config)

            verdict = promotion.decide(registered, version, measure, gate.judging(version, config.gate))
            versions.describe(registered, version, description(registered, version, report, verdict))
        said = "champion" if verdict.promote else "not promoted"
        say(f"{registered} version {version.version}: {said}: {'; '.join(verdict.reasons)}")
        version = versions.by_artifact(registered, keys.model.id)
        assert version is not None
    else:
        say(f"register-{name}: done before ({registered} version {version.version})")
    results.announce(version)
    gate.publish(version)
    return versions.row(version)


def new_version(
    name: str, model: Artifact, config: PipelineConfig, plan: Plan, report: dict[str, Any], run: Run
) -> Any:
    """Return a new registry version with its card, the record to reproduce it, and tags."""
    keys, texts = plan.of(name), provenance.about(name, config, plan, model, report)
    tags = {"gpt2.data": keys.data.id, **measured_tags(report), **plan.tags}
    return entered(name, keys.registered, model, run, tags, texts)


def measured_tags(report: dict[str, Any]) -> dict[str, str]:
    """Return the tags with the metric that the gate compares, which tables of versions show."""
    metric = report["primary"]["name"]
    return {
        "gpt2.metric": metric,
        "gpt2.value": f"{report['metrics'][metric]:.6g}",
        "gpt2.floor": f"{report['baselines'][report['floor']][metric]:.6g}",
    }


def entered(name: str, registered: str, model: Artifact, run: Run, tags: dict[str, str], texts: dict[str, str]) -> Any:
    """Return a registry version with `tags` and those that every version has; `texts` are kept among its files."""
    predictor = kind(name).predictor(model.path / MODEL)
    params = getattr(predictor, "params", kind(name).params)  # a short context has other defaults
    example = list(predictor.input_example)
    champion = versions.by_alias(registered, versions.CHAMPION)
    tags = {
        "gpt2.base": model.manifest["inputs"].get("base", model.id),
        "gpt2.parent_version": champion.version if champion else "none",
        **tags,
        "prefect.flow_run.id": str(flow_run.id or ""),
        **results.cost_tags(model),
        **commit_tag(),
    }
    answer = predictor.predict(example, params)
    return versions.register(registered, model, run, tags, example, params, answer, texts)


def description(registered: str, version: Any, report: dict[str, Any], verdict: gate_verdict.Verdict) -> str:
    """Return the description of a version for the registry's page, as Markdown."""
    metrics = "\n".join(f"| {k} | {v:.4f} |" for k, v in report["metrics"].items() if isinstance(v, float))
    decision = "Promoted" if verdict.promote else "Not promoted"
    return (
        f"{report['title']}. {decision}: {'; '.join(verdict.reasons)}.\n\n| metric | value |\n|---|---|\n{metrics}\n\n"
        f"{how_to_load(registered, version)}The verdict with all figures: "
        f"`gpt2 verdict models:/{registered}/{version.version}`, or `verdict/verdict.html` of the run.\n"
    )


def how_to_load(registered: str, version: Any) -> str:
    """Return Markdown with the code that loads the model, and the command that shows its card."""
    return (
        f'```python\nimport gpt2\nmodel = gpt2.load("models:/{registered}/{version.version}")\n```\n'
        f"The model's card: `gpt2 card models:/{registered}/{version.version}`. "
    )


@flow(name="register", flow_run_name="register")
def register(config: PipelineConfig = resolve("laptop")) -> list[dict[str, Any]]:
    """Register evaluated models; the gate decides which versions become champions.

    Args:
        config: the pipeline's settings.
    """
    plan = make_plan(config)
    rows = [register_model(name, config, plan) for name in plan.models]
    results.publish(plan, rows)
    return rows
