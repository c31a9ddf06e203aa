"""Models into the registry: a new version each, the gate, and the alias that follows from it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run

from cluster import evaluation, registry
from cluster.home import store, tracking_uri
from cluster.tracking import Run
from flows.config import PipelineConfig, resolve
from flows.plan import REPORTING, Plan, make_plan
from flows.stage import commit_tag, recorded, say
from gpt2 import language_model
from gpt2.artifact import Artifact, Key
from gpt2.task import Predictor
from gpt2.task import task as task_of


def champions_report(name: str, plan: Plan, config: PipelineConfig, model_id: str) -> dict[str, Any] | None:
    """The champion's report on the same examples; None where there is no champion."""
    registered = registry.registered_name(name)
    champion = registry.by_alias(registered, registry.CHAMPION)
    if champion is None or champion.tags.get(registry.ARTIFACT_TAG) == model_id:
        return None
    kind = "base" if name == "base" else plan.tasks[name].model.kind
    data = plan.tokens if name == "base" else plan.tasks[name].examples
    champion_id = champion.tags[registry.ARTIFACT_TAG]
    key = Key(f"{name}-report", {}, {"model": champion_id, "data": data.id}, REPORTING)

    def build(out: Path) -> dict[str, Any]:
        examples = store().require(data.kind, data.id)
        with tempfile.TemporaryDirectory() as folder:
            model = store().get(kind, champion_id)
            path = model.path if model else registry.download(registered, champion, Path(folder)).parent
            if name == "base":
                return evaluation.evaluate_base(path, examples, config.pretrain.context, out)["metrics"]
            return evaluation.evaluate_task(name, path, examples, out)["metrics"]

    say(f"{registered}: measuring champion version {champion.version} on the same examples")
    return json.loads(store().make(key, build).file("report.json").read_text())


@task(name="register", task_run_name="register {name}")
def register_model(name: str, config: PipelineConfig, plan: Plan) -> dict[str, Any]:
    """Register the model, compare it with the champion, move the alias or say why not."""
    model_key, report_key = (
        (plan.base, plan.base_report) if name == "base" else (plan.tasks[name].model, plan.tasks[name].report)
    )
    registered = registry.registered_name(name)
    report = json.loads(store().require(report_key.kind, report_key.id).file("report.json").read_text())
    version = registry.by_artifact(registered, model_key.id)
    if version is None or not registry.judged(version):
        model = store().require(model_key.kind, model_key.id)
        with recorded(f"register-{name}", report_key.id, {}) as run:
            run.metrics(report["metrics"])
            version = version or new_version(name, registered, model, plan, run)
            registry.challenge(registered, version)
            verdict = registry.gate(report, champions_report(name, plan, config, model_key.id))
            registry.apply(registered, version, verdict)
            registry.describe(registered, version, description(registered, report, verdict))
        said = "champion" if verdict.promote else "not promoted"
        say(f"{registered} version {version.version}: {said}: {'; '.join(verdict.reasons)}")
        version = registry.by_artifact(registered, model_key.id)
        assert version is not None
    else:
        say(f"register-{name}: done before ({registered} version {version.version})")
    return registry.row(version)


def new_version(name: str, registered: str, model: Artifact, plan: Plan, run: Run) -> Any:
    """A registry version with lineage tags."""
    load = language_model.GeneratorPredictor if name == "base" else task_of(name).predictor
    params = language_model.DEFAULTS if name == "base" else task_of(name).params
    predictor: Predictor = load(model.path / "model")
    example = list(predictor.input_example)
    champion = registry.by_alias(registered, registry.CHAMPION)
    tags = {
        "gpt2.data": (plan.tokens if name == "base" else plan.tasks[name].examples).id,
        "gpt2.base": plan.base.id,
        "gpt2.parent_version": champion.version if champion else "none",
        **plan.tags,
        "prefect.flow_run.id": str(flow_run.id or ""),
        **commit_tag(),
    }
    return registry.register(registered, model, run, tags, example, params, predictor.predict(example, params))


def description(registered: str, report: dict[str, Any], verdict: registry.Verdict) -> str:
    """What the registry's page says of a version."""
    metrics = "\n".join(f"| {k} | {v:.4f} |" for k, v in report["metrics"].items() if isinstance(v, float))
    decision = "Promoted" if verdict.promote else "Not promoted"
    return (
        f"{report['title']}. {decision}: {'; '.join(verdict.reasons)}.\n\n| metric | value |\n|---|---|\n{metrics}\n\n"
        f"```python\nimport mlflow\nmlflow.set_tracking_uri({tracking_uri()!r})\n"
        f'model = mlflow.pyfunc.load_model("models:/{registered}@champion")\n```\n'
    )


@flow(name="register")
def register(config: PipelineConfig = resolve("laptop")) -> list[dict[str, Any]]:
    """Evaluated models become registry versions; the gate decides which one is the champion.

    Args:
        config: the pipeline's settings.
    """
    plan = make_plan(config)
    rows = [register_model(name, config, plan) for name in ("base", *plan.tasks)]
    create_table_artifact(rows, key="verdicts", description="What the gate decided")
    return rows
