"""Models into the registry: a new version each, the gate, and the alias that follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.runtime import flow_run

from cluster import evaluation, promotion, pulling, registry
from cluster.home import store
from cluster.tracking import Run
from flows import gating, provenance, results
from flows.config import PipelineConfig, resolve
from flows.evaluation import held_out, search
from flows.plan import REREADING, Plan, make_plan
from flows.stage import commit_tag, recorded, say
from gpt2.artifact import Artifact, Key
from gpt2.modelfiles import RefusedModel
from gpt2.task import kind
from gpt2.weights import MODEL


def report_of(version: Any, name: str, plan: Plan, config: PipelineConfig) -> dict[str, Any]:
    """The report of another registered version on the same examples; its `folder` has the predictions."""
    own, model_id, context = plan.of(name).report, version.tags[registry.ARTIFACT_TAG], config.pretrain.context
    # As its own run would have made it: often it has.
    key = Key(own.kind, own.spec, {**own.inputs, "model": model_id}, own.code)
    own_context = None if name in plan.tasks else reads(version, plan, config)
    if own_context is not None:
        key = rereading(own, model_id, own_context, context)

    def build(out: Path) -> dict[str, Any]:
        data, path, searched = held_out(name, plan), pulling.pull_version(version).parent, search(name, plan)
        if name in plan.tasks:
            return evaluation.evaluate_task(name, path, data, searched, out)["metrics"]
        return evaluation.evaluate_base(path, data, searched, context, out, reads=own_context)["metrics"]

    if store().find(key) is None:
        say(f"{version.name}: measuring version {version.version} on the same examples")
    return read_report(store().make(key, build), version)


def rereading(own: Key, model_id: str, reads: int, context: int) -> Key:
    """Of the report of a base model that reads so many tokens of its own at once, on the text of the report `own`."""
    spec, inputs = {**own.spec, "reads": reads, "context": context}, {**own.inputs, "model": model_id}
    return Key(own.kind, spec, inputs, (*own.code, *REREADING))


def reads(version: Any, plan: Plan, config: PipelineConfig) -> int | None:
    """How many tokens at once another version of the base model reads of its own tokenizer; None where it reads what
    the run's own model does: its tokenizer and the context that it was trained at are the same."""
    theirs = store().require("tokenizer", plan.tokenizer.id).file("tokenizer.json").read_text("utf-8")
    own, shape = (json.loads(pulling.read_text(version, file)) for file in ("tokenizer.json", "config.json"))
    context = min(trained_at(version) or config.pretrain.context, shape["n_positions"])
    return None if own == json.loads(theirs) and context == config.pretrain.context else context


def trained_at(version: Any) -> int | None:
    """The context of a base model's training; None where nothing tells it."""
    if made := store().get("base", version.tags[registry.ARTIFACT_TAG]):
        return made.manifest["spec"]["train"]["context"]
    try:
        return json.loads(pulling.read_text(version, provenance.RECORD))["config"]["pretrain"]["context"]
    except RefusedModel:  # an older release registered it
        return None


def read_report(report: Artifact, version: Any) -> dict[str, Any]:
    """A version's report, with the folder where its predictions lie."""
    content = json.loads(report.file("report.json").read_text())
    return {**content, "folder": str(report.path), "version": version.version}


@task(name="register", task_run_name="register {name}")
def register_model(name: str, config: PipelineConfig, plan: Plan) -> dict[str, Any]:
    """Register the model, compare it with the champion, move the alias or say why not."""
    keys = plan.of(name)
    registered = keys.registered
    made = store().require(keys.report.kind, keys.report.id)
    report = json.loads(made.file("report.json").read_text())
    version = registry.by_artifact(registered, keys.model.id)
    if version is None or not registry.judged(version):
        model = store().require(keys.model.kind, keys.model.id)
        inputs = {"model": keys.model.id, "report": keys.report.id}
        with recorded(f"register-{name}", keys.report.id, {}, inputs) as run:
            run.metrics(report["metrics"])
            version = version or new_version(name, model, config, plan, report, run)
            registry.challenge(registered, version)

            def measure(other: Any) -> dict[str, Any]:
                own = other.tags.get(registry.ARTIFACT_TAG) == keys.model.id
                return read_report(made, other) if own else report_of(other, name, plan, config)

            verdict = promotion.decide(registered, version, measure, gating.judging(version, config.gate))
            registry.describe(registered, version, description(registered, version, report, verdict))
        said = "champion" if verdict.promote else "not promoted"
        say(f"{registered} version {version.version}: {said}: {'; '.join(verdict.reasons)}")
        results.announce(registered, int(version.version), verdict.promote, verdict.reasons)
        version = registry.by_artifact(registered, keys.model.id)
        assert version is not None
    else:
        say(f"register-{name}: done before ({registered} version {version.version})")
    gating.publish(version)
    return registry.row(version)


def new_version(
    name: str, model: Artifact, config: PipelineConfig, plan: Plan, report: dict[str, Any], run: Run
) -> Any:
    """A registry version with its card, the record that it can be reproduced from, and tags."""
    keys, texts = plan.of(name), provenance.about(name, config, plan, model, report)
    tags = {"gpt2.data": keys.data.id, **measured_tags(report), **plan.tags}
    return entered(name, keys.registered, model, run, tags, texts)


def measured_tags(report: dict[str, Any]) -> dict[str, str]:
    """What the gate compares, as the tables of versions show it."""
    metric = report["primary"]["name"]
    return {
        "gpt2.metric": metric,
        "gpt2.value": f"{report['metrics'][metric]:.6g}",
        "gpt2.floor": f"{report['baselines'][report['floor']][metric]:.6g}",
    }


def entered(name: str, registered: str, model: Artifact, run: Run, tags: dict[str, str], texts: dict[str, str]) -> Any:
    """A registry version with these tags and those that every version has; `texts` go among its files."""
    params, predictor = kind(name).params, kind(name).predictor(model.path / MODEL)
    example = list(predictor.input_example)
    champion = registry.by_alias(registered, registry.CHAMPION)
    tags = {
        "gpt2.base": model.manifest["inputs"].get("base", model.id),
        "gpt2.parent_version": champion.version if champion else "none",
        **tags,
        "prefect.flow_run.id": str(flow_run.id or ""),
        **results.cost_tags(model),
        **commit_tag(),
    }
    answer = predictor.predict(example, params)
    return registry.register(registered, model, run, tags, example, params, answer, texts)


def description(registered: str, version: Any, report: dict[str, Any], verdict: registry.Verdict) -> str:
    """What the registry's page says of a version."""
    metrics = "\n".join(f"| {k} | {v:.4f} |" for k, v in report["metrics"].items() if isinstance(v, float))
    decision = "Promoted" if verdict.promote else "Not promoted"
    return (
        f"{report['title']}. {decision}: {'; '.join(verdict.reasons)}.\n\n| metric | value |\n|---|---|\n{metrics}\n\n"
        f"{how_to_load(registered, version)}The verdict with all figures: "
        f"`gpt2 verdict models:/{registered}/{version.version}`, or `verdict/verdict.html` of the run.\n"
    )


def how_to_load(registered: str, version: Any) -> str:
    """Markdown: the code, and where the card is."""
    return (
        f'```python\nimport gpt2\nmodel = gpt2.load("models:/{registered}/{version.version}")\n```\n'
        f"The model's card: `gpt2 card models:/{registered}/{version.version}`. "
    )


@flow(name="register")
def register(config: PipelineConfig = resolve("laptop")) -> list[dict[str, Any]]:
    """Evaluated models become registry versions; the gate decides which one is the champion.

    Args:
        config: the pipeline's settings.
    """
    plan = make_plan(config)
    rows = [register_model(name, config, plan) for name in plan.models]
    results.publish(plan, rows)
    return rows
