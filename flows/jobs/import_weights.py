"""The flow `import`: published weights become a version of the base model, measured beside the champion and judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import flow, task

from cluster.batch import evaluation
from cluster.home import store
from cluster.registry import promotion, versions
from cluster.registry.lineage import IMPORTED, Lineage, lineage
from cluster.tracking.runs import Run, client
from flows.jobs.import_plan import NAME, ImportConfig, ImportPlan, prepare, settings_like, yardstick
from flows.jobs.own_data_plan import plan_of
from flows.plan import MAX_TOKENS
from flows.runs.ending import HOOKS, carry_out
from flows.runs.stage import make, parent_of_all, recorded, say
from flows.stages import gate, provenance, results
from flows.stages.evaluation import publish, search
from flows.stages.gate import read_report, report_of, rereading
from flows.stages.gate import trained_at as context_of
from flows.stages.registration import description, entered, how_to_load, measured_tags
from gpt2.evaluation import model_card
from gpt2.store.artifact import Artifact
from gpt2.tasks.base.kind import BASE
from gpt2.weights import published


@task(name="import weights")
def write(weights: ImportPlan) -> Artifact:
    """Write the model, its tokenizer, corpus and tokens as artifacts, as for a model that is trained here."""
    prepare(weights)

    def build(out: Path, run: Run) -> dict[str, Any]:
        return {**published.write(weights.directory, weights.files, out), IMPORTED: weights.source}

    return make("import", weights.plan.base, weights.config.model_dump(mode="json"), build)


@task(name="evaluate base model")
def measure(weights: ImportPlan, base: Artifact, champion: Lineage) -> Artifact:
    """Measure the model on the champion's held-out text, in bits per byte; return the report."""
    settings = settings_of(champion)
    plan, context, reads = plan_of(settings, champion), settings.pretrain.context, weights.model.n_positions
    searched = search("base", plan)

    def build(out: Path, run: Run) -> dict[str, Any]:
        tokens = store().require("tokens", plan.tokens.id)
        most = plan.pretrained.report.spec[MAX_TOKENS]
        metrics = evaluation.evaluate_base(base.path, tokens, searched, context, out, most, reads=reads)["metrics"]
        run.files(out, "report")
        return metrics

    report = make("evaluate-base", rereading(plan.pretrained.report, base.id, reads, context), {}, build)
    publish("base", report)
    return report


def settings_of(champion: Lineage) -> Any:
    """Return the settings to measure the champion with, at the context of its training."""
    version = client().get_model_version(NAME, champion.version)
    return settings_like(champion, min(context_of(version) or champion.model.n_positions, champion.model.n_positions))


@task(name="register", task_run_name="register base")
def register(weights: ImportPlan, base: Artifact, champion: Lineage | str) -> dict[str, Any]:
    """Register the model as a version of the base model.

    The gate judges it if there is text to measure it on. The user may make it the champion in any case.
    """
    version = versions.by_artifact(NAME, base.id)
    done = version is not None and versions.judged(version)
    made = measure(weights, base, champion) if isinstance(champion, Lineage) and not done else None
    report = json.loads(made.file("report.json").read_text()) if made else unmeasured(base, str(champion))
    with recorded("register-base", made.id if made else base.id, {}, {"model": base.id}) as run:
        run.metrics(report["metrics"])
        version = version or entered("base", NAME, base, run, tags(weights, report), texts(weights, base, report))
        versions.challenge(NAME, version)
        if made and isinstance(champion, Lineage):
            judge(weights, version, made, report, champion)
        elif done:
            results.announce(version)
        else:
            about = f"{report['title']}, imported from {weights.source}. Not judged: {champion}."
            versions.describe(NAME, version, f"{about}\n\n{how_to_load(NAME, version)}\n")
            say(f"{NAME} version {version.version}: not judged: {champion}")
        if weights.config.champion:
            promotion.promote(NAME, version.version, f"imported from {weights.source} to be the champion", force=True)
            say(f"{NAME} version {version.version}: champion, as requested")
    gate.publish(version)
    version = versions.by_artifact(NAME, base.id)
    assert version is not None
    return versions.row(version)


def judge(weights: ImportPlan, version: Any, made: Artifact, report: dict[str, Any], champion: Lineage) -> None:
    """Let the gate judge the version beside the champion, on the same text; announce the verdict."""
    settings = settings_of(champion)
    plan = plan_of(settings, champion)

    def measured(other: Any) -> dict[str, Any]:
        own = other.tags.get(versions.ARTIFACT_TAG) == version.tags[versions.ARTIFACT_TAG]
        return read_report(made, other) if own else report_of(other, "base", plan, settings)

    for key, value in measured_tags(report).items():  # it may have been registered before there was a champion
        promotion.tag(version, key, value)
    verdict = promotion.decide(NAME, version, measured, gate.judging(version, weights.config.gate))
    versions.describe(NAME, version, description(NAME, version, report, verdict))
    said = "champion" if verdict.promote else "not promoted"
    say(f"{NAME} version {version.version}: {said}: {'; '.join(verdict.reasons)}")
    results.announce(client().get_model_version(NAME, version.version))


def unmeasured(base: Artifact, why: str) -> dict[str, Any]:
    """Return a report without metrics, for a model that could not be measured."""
    return {
        "title": BASE.title,
        "primary": {"name": BASE.primary, "higher_is_better": BASE.higher_is_better},
        "metrics": {},
        "baselines": {},
        "counts": {"parameters": base.info["parameters"]},
        "notes": [f"Not measured: {why}."],
    }


def tags(weights: ImportPlan, report: dict[str, Any]) -> dict[str, str]:
    """Return the tags of the version: its source and its metrics."""
    facts = {"gpt2.data": weights.plan.tokens.id, f"gpt2.{IMPORTED}": weights.source}
    return {**facts, **(measured_tags(report) if report["metrics"] else {})}


def texts(weights: ImportPlan, base: Artifact, report: dict[str, Any]) -> dict[str, str]:
    """Return the model card, and the record with source, revision and the sha256 of each file."""
    made = lineage("", base)
    settings = settings_like(made, made.model.n_positions)
    record = provenance.record("base", settings, weights.plan, base)
    record["config"]["corpus"]["sources"] = settings.corpus.sources  # none were read, but the schema requires some
    files = [(name, f"`{sha}`") for name, sha in weights.files.items()]
    stages = [(s["what"], f"`{s['kind']}/{s['id']}`") for s in record["stages"]]
    text = model_card.card(
        BASE, NAME, report, [("text", "that of its publisher; not known here, and not searched")],
        [("imported from", weights.source)], [*files, *stages],
    )  # fmt: skip
    return {model_card.NAME: text, provenance.RECORD: json.dumps(record, indent=1) + "\n"}


@flow(name="import", flow_run_name="import · {config.source}", **HOOKS)
def import_weights(config: ImportConfig) -> Any:
    """Import published weights as a version of the base model, for fine-tuning and for refreshes with text of your own.
    Finished work is not repeated.

    Args:
        config: The source of the weights, and how to register them.
    """
    return carry_out(lambda: ImportPlan.of(config), carried_out, lambda weights: {"registered": [weights.registered()]})


def carried_out(weights: ImportPlan) -> dict[str, Any]:
    """Import and register the weights; return the registry's row."""
    with parent_of_all():
        base = write(weights)
        return {"registered": [register(weights, base, yardstick(base.id))]}
