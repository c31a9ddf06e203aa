"""MLflow runs: a parent run per pipeline, a child per stage, continued by a retry; metrics sent from a thread.

Training never waits for the server: the journal on disk is the truth. Metrics that a server missed while it was away
are sent when it is back, or, if this process ended before, by the next one, which goes on after MLflow's last step.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import mlflow
import psutil
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from cluster.home import tracking_uri
from cluster.process_env import environment
from cluster.tracking.retry import FAILURES, RetryingClient, forget, unanswered

RECORDS = 100
"""Most records sent in one request."""
LEAVING = 5.0
"""Seconds to wait for unsent records if a training ends early."""


class Sender:
    """Thread that sends metrics to a run in order, several in one request if they have accumulated."""

    def __init__(self, run: Run):
        self.run = run
        self.waiting: queue.Queue[tuple[Mapping[str, float], int, float | None] | None] = queue.Queue()
        self.error: BaseException | None = None
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._send_all, daemon=True, name="mlflow-sender")

    def __enter__(self) -> Sender:
        self.thread.start()
        return self

    def put(self, values: Mapping[str, float], step: int, time: float | None) -> None:
        """Queue metrics of a step. With the same `time` (s since 1970), sending them twice has no further effect."""
        self.waiting.put((values, step, time))

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """Wait until all is sent, or raise the sender's error. After an exception, wait for `LEAVING` seconds only."""
        self.ending.set()
        self.waiting.put(None)
        self.thread.join(None if kind is None else LEAVING)
        if kind is None and self.error is not None:
            raise self.error

    def _send_all(self) -> None:
        try:
            more = True
            while more:
                batch = [self.waiting.get()]
                while len(batch) < RECORDS and not self.waiting.empty():
                    batch.append(self.waiting.get())
                more = batch[-1] is not None
                self._send([item for item in batch if item is not None])
        except BaseException as error:
            self.error = error

    def _send(self, records: list[tuple[Mapping[str, float], int, float | None]]) -> None:
        """Send records, retrying as long as the training goes on."""
        while True:
            try:
                return self.run.batch(records)
            except FAILURES as error:
                if self.ending.is_set() or not unanswered(error):
                    raise


EXPERIMENT = "gpt2-pipeline"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description (Markdown)."""
LOCAL_SERVER = "http://127.0.0.1:5000"
PROCESS = "gpt2.process"
"""The tag of the process that writes a run. It does not identify the run."""
OPEN = "attributes.status = 'RUNNING'"
BATCH = 100  # parameters and tags in one request, MLflow's limit
METRICS = 1000  # metrics in one, also MLflow's


SQLITE = "sqlite:///"
ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")


def database(uri: str) -> Path:
    """Return the path of the file behind a `sqlite:///` address."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]).resolve()


@contextmanager
def connected_to(uri: str) -> Iterator[None]:
    """Let all of this process use the MLflow at `uri` for runs and versions, until the block ends.

    Raises `ValueError` if no MLflow answers there.
    """
    before = {name: os.environ.pop(name, None) for name in ADDRESSES}
    os.environ[ADDRESSES[0]] = uri
    try:
        _forget_client()
        try:
            client().search_experiments(max_results=1)
        except MlflowException as error:
            raise ValueError(f"{uri}: is no MLflow that can be used: {error.message:.300}") from None
        yield
    finally:
        for name in ADDRESSES:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})
        _forget_client()
        client()  # MLflow itself has its addresses back


def _forget_client() -> None:
    client.cache_clear()
    experiment_id.cache_clear()
    forget()


@cache
def client() -> MlflowClient:
    """Return a client of the tracking server and registry, which retries while the server does not answer."""
    uri = tracking_uri()
    if uri.startswith(SQLITE):
        database(uri).parent.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(os.environ.get("MLFLOW_REGISTRY_URI") or uri)
    if not uri.startswith("http"):
        return MlflowClient()
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it logs each try; we log an outage once
    return cast(MlflowClient, RetryingClient(MlflowClient()))


@cache
def experiment_id() -> str:
    """Return the id of our experiment, made on first use. Its artifacts lie beside the database, unless a server keeps
    them.

    Raises `ValueError` if it was deleted in MLflow, which keeps its name.
    """
    experiment = client().get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        if experiment.lifecycle_stage == LifecycleStage.DELETED:
            raise ValueError(
                f"MLflow's experiment {EXPERIMENT} was deleted, so that no run can begin; restore it: "
                f"MLFLOW_TRACKING_URI={tracking_uri()} mlflow experiments restore -x {experiment.experiment_id}"
            )
        return experiment.experiment_id
    local = tracking_uri().startswith(SQLITE)
    location = (database(tracking_uri()).parent / "artifacts").as_uri() if local else None
    try:
        return client().create_experiment(EXPERIMENT, artifact_location=location)
    except MlflowException:  # another process was faster
        experiment = client().get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            raise
        return experiment.experiment_id


def server() -> str:
    """Return the URL of MLflow's pages: the tracking server, or the address at which `mlflow ui` shows a local
    store."""
    uri = tracking_uri()
    return uri.rstrip("/") if uri.startswith("http") else LOCAL_SERVER


def version_url(name: str, version: int | str) -> str:
    """Return the URL of a model version's page."""
    return f"{server()}/#/models/{name}/versions/{version}"


class Run:
    """One MLflow run, written through the client, without global state and from any thread."""

    def __init__(self, id: str):
        self.id = id

    @classmethod
    def open(cls, name: str, tags: Mapping[str, str], parent: str | None = None) -> Run:
        """Return the unfinished run with these `gpt2.*` tags (except `PROCESS`), or a new one."""
        tags = {k: str(v) for k, v in tags.items()}
        identity = {k: v for k, v in tags.items() if k.startswith("gpt2.") and k != PROCESS}
        clauses = [f"tags.`{k}` = '{v}'" for k, v in identity.items()] + ["attributes.status != 'FINISHED'"]
        unfinished = client().search_runs([experiment_id()], " and ".join(clauses), max_results=1) if identity else []
        if parent is not None:
            tags[PARENT] = parent
        if unfinished:
            run = cls(unfinished[0].info.run_id)
            client().update_run(run.id, status="RUNNING")
            run.tag(tags)
            return run
        created = client().create_run(experiment_id(), tags=tags, run_name=name)
        return cls(created.info.run_id)

    @property
    def url(self) -> str:
        """Return the URL of the run's page."""
        return f"{server()}/#/experiments/{experiment_id()}/runs/{self.id}"

    def tag(self, tags: Mapping[str, Any]) -> None:
        entries = [RunTag(k, str(v)) for k, v in tags.items() if v is not None]
        for start in range(0, len(entries), BATCH):
            client().log_batch(self.id, tags=entries[start : start + BATCH])

    def params(self, settings: Mapping[str, Any]) -> None:
        """Log nested settings with dotted names.

        A parameter of a continued run keeps its first value, because MLflow refuses changes. The latest values are in
        `config.json` (`facts`).
        """
        known = client().get_run(self.id).data.params
        flat = [Param(k, v[:6000]) for k, v in flatten(settings).items() if k not in known]
        for start in range(0, len(flat), BATCH):
            client().log_batch(self.id, params=flat[start : start + BATCH])

    def facts(self, settings: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]] = {}) -> None:
        """Attach the resolved settings (`config.json`), the environment (`environment.json`) and the inputs.

        `inputs`, {name: {kind, id, counts}}, are logged as `data.json` and as MLflow datasets.
        """
        client().log_dict(self.id, dict(settings), "config.json")
        client().log_dict(self.id, environment(), "environment.json")
        if not inputs:
            return
        client().log_dict(self.id, {name: dict(facts) for name, facts in inputs.items()}, "data.json")
        datasets = [
            Dataset(
                name=f"{facts['kind']}/{facts['id']}"[:500],
                digest=facts["id"][:36],
                source_type="gpt2",
                source=json.dumps({"kind": facts["kind"], "id": facts["id"]}),
                profile=json.dumps(facts["counts"]),
            )
            for facts in list(inputs.values())[:BATCH]
        ]
        entries = [DatasetInput(d, [InputTag("mlflow.data.context", "input")]) for d in datasets]
        for tries_left in (2, 1, 0):
            try:
                return client().log_inputs(self.id, entries)
            except MlflowException:  # two clients that log the same new dataset at the same time: one fails
                if not tries_left:
                    raise

    def metrics(self, values: Mapping[str, float], step: int = 0, timestamp: float | None = None) -> None:
        self.batch([(values, step, timestamp)])

    def batch(self, records: Iterable[tuple[Mapping[str, float], int, float | None]]) -> None:
        """Log the metrics of several steps, each (values, step, time in s since 1970)."""
        metrics = [
            Metric(name, float(value), int((timestamp or time.time()) * 1000), step)
            for values, step, timestamp in records
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), METRICS):
            client().log_batch(self.id, metrics=metrics[start : start + METRICS])

    def last_step(self, metric: str) -> int:
        """Return the last step at which a metric was logged, after which a continued run goes on; 0 if there is
        none."""
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


def end_open(tag: str, value: str, status: str = "KILLED") -> None:
    """Set the status of the run with the tag if it is still open, and that of its open children to KILLED."""
    for parent in client().search_runs([experiment_id()], f"tags.`{tag}` = '{value}'"):
        for child in client().search_runs([experiment_id()], f"tags.`{PARENT}` = '{parent.info.run_id}' and {OPEN}"):
            Run(child.info.run_id).end("KILLED")
        if parent.info.status == "RUNNING":
            Run(parent.info.run_id).end(status)


def this_process() -> str:
    """Return the value of the tag `PROCESS`: host, process id, and start of the process (s since 1970)."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def end_dead() -> None:
    """Set the open runs of processes of this machine that are gone to KILLED."""
    for run in client().search_runs([experiment_id()], OPEN):
        host, number, start = (run.data.tags.get(PROCESS, "") + "  ").split(" ")[:3]
        if host != socket.gethostname():
            continue
        try:
            alive = abs(psutil.Process(int(number)).create_time() - float(start)) < 2
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            end_open(PROCESS, run.data.tags[PROCESS])


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as dotted names and texts."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{name}.")
        else:
            flat[name] = item if isinstance(item, str) else json.dumps(item)
    return flat
