"""The gate at work: reports of a candidate and of the champion in, a verdict out, kept with the version.

A version without a report on the same examples is measured on them first.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact

from cluster.batch import evaluation
from cluster.home import store
from cluster.registry import download, versions
from cluster.tracking.runs import Run, client, version_url
from flows.config import PipelineConfig
from flows.plan import MAX_TOKENS, Plan
from flows.runs.prefect_artifacts import image, show, slug
from flows.runs.stage import say
from flows.stages import provenance
from flows.stages.evaluation import held_out, search
from gpt2.gate import verdict_page
from gpt2.gate.config import GateConfig
from gpt2.gate.verdict import Verdict, judge_by_values
from gpt2.store.artifact import Artifact, Key
from gpt2.store.model_files import RefusedModel


def report_of(version: Any, name: str, plan: Plan, config: PipelineConfig) -> dict[str, Any]:
    """Return the report of another registered version on the same examples; its `folder` has the predictions."""
    own, model_id, context = plan.of(name).report, version.tags[versions.ARTIFACT_TAG], config.pretrain.context
    # The key that the version's own run used, so its report often exists.
    key = Key(own.kind, own.spec, {**own.inputs, "model": model_id}, own.code)
    own_context = None if name in plan.tasks else reads(version, plan, config)
    if own_context is not None:
        key = rereading(own, model_id, own_context, context)

    def build(out: Path) -> dict[str, Any]:
        data, path, searched = held_out(name, plan), download.pull_version(version).parent, search(name, plan)
        if name in plan.tasks:
            return evaluation.evaluate_task(name, path, data, searched, out)["metrics"]
        most = own.spec[MAX_TOKENS]
        return evaluation.evaluate_base(path, data, searched, context, out, most, reads=own_context)["metrics"]

    if store().find(key) is None:
        say(f"{version.name}: measuring version {version.version} on the same examples")
    return read_report(store().make(key, build), version)


def rereading(own: Key, model_id: str, reads: int, context: int) -> Key:
    """Return the key of a base model's report when it is measured with its own tokenizer and context on the text of
    report `own`."""
    spec, inputs = {**own.spec, "reads": reads, "context": context}, {**own.inputs, "model": model_id}
    return Key(own.kind, spec, inputs, own.code)


def reads(version: Any, plan: Plan, config: PipelineConfig) -> int | None:
    """Return the context (tokens of its own tokenizer) of another version of the base model.

    Returns None if its tokenizer and context are those of the run's own model.
    """
    theirs = store().require("tokenizer", plan.tokenizer.id).file("tokenizer.json").read_text("utf-8")
    own, shape = (json.loads(download.read_text(version, file)) for file in ("tokenizer.json", "config.json"))
    context = min(trained_at(version) or config.pretrain.context, shape["n_positions"])
    return None if own == json.loads(theirs) and context == config.pretrain.context else context


def trained_at(version: Any) -> int | None:
    """Return the context of a base model's training; None if it is unknown."""
    if made := store().get("base", version.tags[versions.ARTIFACT_TAG]):
        return made.manifest["spec"]["train"]["context"]
    try:
        return json.loads(download.read_text(version, provenance.RECORD))["config"]["pretrain"]["context"]
    except RefusedModel:  # an older release registered it
        return None


def read_report(report: Artifact, version: Any) -> dict[str, Any]:
    """Return a version's report, with `folder`, where its predictions lie, and `version`."""
    content = json.loads(report.file("report.json").read_text())
    return {**content, "folder": str(report.path), "version": version.version}


FOLDER = "verdict"
"""Folder of the verdict among the artifacts of the MLflow run that registered the version."""
Report = Mapping[str, Any]


def judging(version: Any, policy: GateConfig) -> Callable[[Report, Report | None], Verdict]:
    """Return a function that judges a version from its report and the champion's.

    A report has the place of its predictions in `folder`, and their version in `version`. The verdict is stored before
    it takes effect.
    """

    def judge(report: Report, champion: Report | None) -> Verdict:
        rival = Path(champion["folder"]) if champion else None
        facts = {
            "model": version.name,
            "version": int(version.version),
            "champion": int(champion["version"]) if champion else None,
        }
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / FOLDER
            result = verdict_page.write(out, Path(report["folder"]), rival, policy, facts)
            if result is None:
                return judge_by_values(report, champion)
            Run(version.run_id).files(out, FOLDER)
        return Verdict(result["promote"], tuple(result["reasons"]))

    return judge


def publish(version: Any) -> None:
    """Show the verdict that is kept with a version on the flow run; does nothing if there is none."""
    files = [f.path for f in client().list_artifacts(version.run_id, FOLDER)]
    if f"{FOLDER}/{verdict_page.VERDICT}" not in files:
        return
    with tempfile.TemporaryDirectory() as scratch:

        def kept(name: str) -> Path:
            return Path(client().download_artifacts(version.run_id, f"{FOLDER}/{name}", scratch))

        result = json.loads(kept(verdict_page.VERDICT).read_text("utf-8"))
        drawn = ""
        if f"{FOLDER}/{verdict_page.PICTURE}" in files:
            drawn = image(kept(verdict_page.PICTURE), "Beside the baselines, with 95 % intervals")
    page = f"{Run(version.run_id).url}/artifacts/{FOLDER}/{verdict_page.PAGE}"
    links = {
        "The whole page, with parts, errors and cost": page,
        "The version in the registry": version_url(version.name, version.version),
    }
    text = verdict_page.markdown(result, drawn, links)
    key, description = slug(f"verdict-{version.name}"), verdict_page.heading(result)
    show(create_markdown_artifact, markdown=text, key=key, description=description)


def recompute_verdict(address: str, out: Path | None = None) -> dict[str, Any]:
    """Compute the verdict on a version again from the predictions kept with it; return it. Its page goes to `out`.

    Raises `ValueError` if the version has no predictions, or if the stored verdict does not follow from them.
    """
    version = download.find(address)
    with tempfile.TemporaryDirectory() as scratch:
        files = [f.path for f in client().list_artifacts(version.run_id, FOLDER)]
        if f"{FOLDER}/{verdict_page.VERDICT}" not in files:
            raise ValueError(f"{download.exact(version)} has no verdict with predictions; see `gpt2 card {address}`")
        folder = Path(client().download_artifacts(version.run_id, FOLDER, scratch))
        result = verdict_page.recompute(folder)
        if out is not None:
            out.write_bytes((folder / verdict_page.PAGE).read_bytes())
        return result
