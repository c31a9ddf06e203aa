"""MLflow runs: a parent run per pipeline, a child per stage, continued by a retry."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from cluster.home import home, tracking_uri

EXPERIMENT = "gpt2-pipeline"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description, in Markdown."""
LOCAL_SERVER = "http://127.0.0.1:5000"
BATCH = 100  # parameters and tags in one request, MLflow's limit


@cache
def client() -> MlflowClient:
    """A client of the tracking server and registry."""
    uri = tracking_uri()
    if uri.startswith("sqlite:"):
        (home() / "mlflow").mkdir(exist_ok=True)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(os.environ.get("MLFLOW_REGISTRY_URI") or uri)
    return MlflowClient()


@cache
def experiment_id() -> str:
    """The id of our experiment, made on first use; its artifacts lie in the home unless a server keeps them."""
    found = client().get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return found.experiment_id
    local = tracking_uri().startswith("sqlite:")
    location = (home() / "mlflow" / "artifacts").as_uri() if local else None
    try:
        return client().create_experiment(EXPERIMENT, artifact_location=location)
    except mlflow.exceptions.MlflowException:  # another process was faster
        found = client().get_experiment_by_name(EXPERIMENT)
        if found is None:
            raise
        return found.experiment_id


class Run:
    """One MLflow run, written through the client: no global state, usable from any thread."""

    def __init__(self, id: str):
        self.id = id

    @classmethod
    def open(cls, name: str, tags: Mapping[str, str], parent: str | None = None) -> Run:
        """The unfinished run with exactly these `gpt2.*` tags, or a new one."""
        tags = {k: str(v) for k, v in tags.items()}
        identity = {k: v for k, v in tags.items() if k.startswith("gpt2.")}
        clauses = [f"tags.`{k}` = '{v}'" for k, v in identity.items()] + ["attributes.status != 'FINISHED'"]
        found = client().search_runs([experiment_id()], " and ".join(clauses), max_results=1) if identity else []
        if parent is not None:
            tags[PARENT] = parent
        if found:
            run = cls(found[0].info.run_id)
            client().update_run(run.id, status="RUNNING")
            run.tag(tags)
            return run
        created = client().create_run(experiment_id(), tags=tags, run_name=name)
        return cls(created.info.run_id)

    @property
    def url(self) -> str:
        """Where people see the run: on the tracking server, or where `mlflow ui` shows a local store."""
        uri = tracking_uri()
        server = uri.rstrip("/") if uri.startswith("http") else LOCAL_SERVER
        return f"{server}/#/experiments/{experiment_id()}/runs/{self.id}"

    def tag(self, tags: Mapping[str, Any]) -> None:
        entries = [RunTag(k, str(v)) for k, v in tags.items() if v is not None]
        for start in range(0, len(entries), BATCH):
            client().log_batch(self.id, tags=entries[start : start + BATCH])

    def params(self, settings: Mapping[str, Any]) -> None:
        """Log nested settings with dotted names, and whole as `config.json`.

        A parameter of a continued run keeps its first value, as MLflow wants it; `config.json` has the latest.
        """
        known = client().get_run(self.id).data.params
        flat = [Param(k, v[:6000]) for k, v in flatten(settings).items() if k not in known]
        for start in range(0, len(flat), BATCH):
            client().log_batch(self.id, params=flat[start : start + BATCH])
        client().log_dict(self.id, dict(settings), "config.json")

    def metrics(self, values: Mapping[str, float], step: int = 0, timestamp: float | None = None) -> None:
        now = int((timestamp or time.time()) * 1000)
        client().log_batch(self.id, metrics=[Metric(k, float(v), now, step) for k, v in values.items()])

    def last_step(self, metric: str) -> int:
        """The last step at which a metric was logged, 0 if never: where a continued run goes on."""
        history = client().get_metric_history(self.id, metric)
        return max((m.step for m in history), default=0)

    def files(self, path: Path, folder: str | None = None) -> None:
        """Attach a file or a directory."""
        if path.is_dir():
            client().log_artifacts(self.id, str(path), folder)
        else:
            client().log_artifact(self.id, str(path), folder)

    def text(self, text: str, name: str) -> None:
        """Attach a text."""
        client().log_text(self.id, text, name)

    def end(self, status: str = "FINISHED") -> None:
        """Set the final status: FINISHED, FAILED or KILLED."""
        client().set_terminated(self.id, status)


def end_open(tag: str, value: str) -> int:
    """Mark the run with that tag and its children as killed where they are open still: whoever wrote them is gone.
    Returns how many were open."""
    found = client().search_runs([experiment_id()], f"tags.`{tag}` = '{value}'")
    for parent in list(found):
        found += client().search_runs([experiment_id()], f"tags.`{PARENT}` = '{parent.info.run_id}'")
    still_open = [run.info.run_id for run in found if run.info.status == "RUNNING"]
    for id in still_open:
        Run(id).end("KILLED")
    return len(still_open)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and text."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{name}.")
        else:
            flat[name] = item if isinstance(item, str) else json.dumps(item)
    return flat
