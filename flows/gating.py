"""The gate at work: the reports of a candidate and of the champion in, a verdict out, kept with the version."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact

from cluster import pulling
from cluster.registry import Verdict, judge_by_values
from cluster.tracking import Run, client, version_url
from flows.artifacts import image, show, slug
from gpt2 import verdict_files
from gpt2.policy import GateConfig

FOLDER = "verdict"
"""Of the artifacts of the MLflow run that registered the version."""
Report = Mapping[str, Any]


def judging(version: Any, policy: GateConfig) -> Callable[[Report, Report | None], Verdict]:
    """How the gate judges a version. A report says in `folder` where its predictions lie, and in `version` whose they
    are. The verdict is kept before anyone acts on it."""

    def judge(report: Report, champion: Report | None) -> Verdict:
        rival = Path(champion["folder"]) if champion else None
        facts = {
            "model": version.name,
            "version": int(version.version),
            "champion": int(champion["version"]) if champion else None,
        }
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / FOLDER
            found = verdict_files.write(out, Path(report["folder"]), rival, policy, facts)
            if found is None:
                return judge_by_values(report, champion)
            Run(version.run_id).files(out, FOLDER)
        return Verdict(found["promote"], tuple(found["reasons"]))

    return judge


def publish(version: Any) -> None:
    """Show the verdict that is kept with a version on the flow's run in Prefect; nothing where none was measured."""
    files = [f.path for f in client().list_artifacts(version.run_id, FOLDER)]
    if f"{FOLDER}/{verdict_files.VERDICT}" not in files:
        return
    with tempfile.TemporaryDirectory() as scratch:

        def kept(name: str) -> Path:
            return Path(client().download_artifacts(version.run_id, f"{FOLDER}/{name}", scratch))

        found = json.loads(kept(verdict_files.VERDICT).read_text("utf-8"))
        drawn = ""
        if f"{FOLDER}/{verdict_files.PICTURE}" in files:
            drawn = image(kept(verdict_files.PICTURE), "Beside the baselines, with 95 % intervals")
    page = f"{Run(version.run_id).url}/artifacts/{FOLDER}/{verdict_files.PAGE}"
    links = {
        "The whole page, with parts, errors and cost": page,
        "The version in the registry": version_url(version.name, version.version),
    }
    text = verdict_files.markdown(found, drawn, links)
    key, description = slug(f"verdict-{version.name}"), verdict_files.heading(found)
    show(create_markdown_artifact, markdown=text, key=key, description=description)


def again(address: str, out: Path | None = None) -> dict[str, Any]:
    """The verdict on a version, computed again from the predictions that are kept with it; its page goes to `out`.

    `ValueError` where the version has none, or the stored one does not follow from them.
    """
    version = pulling.find(address)
    with tempfile.TemporaryDirectory() as scratch:
        files = [f.path for f in client().list_artifacts(version.run_id, FOLDER)]
        if f"{FOLDER}/{verdict_files.VERDICT}" not in files:
            raise ValueError(
                f"{pulling.exact(version)} has no verdict with predictions; `gpt2 card {address}` tells why"
            )
        folder = Path(client().download_artifacts(version.run_id, FOLDER, scratch))
        found = verdict_files.recompute(folder)
        if out is not None:
            out.write_bytes((folder / verdict_files.PAGE).read_bytes())
        return found
