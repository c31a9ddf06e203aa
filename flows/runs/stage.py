"""The frame of every stage: skip finished work, record it in MLflow, and link Prefect and MLflow to each other."""

from __future__ import annotations

import contextlib
import logging
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact
from prefect.exceptions import FailedRun, MissingContextError
from prefect.logging import get_logger, get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL

from cluster.home import store
from cluster.tracking.runs import NOTE, PROCESS, Run, this_process
from cluster.training.stopping import BudgetExceeded
from flows.runs.prefect_artifacts import show, slug
from flows.runs.services import keep_events
from gpt2.store.artifact import Artifact, Key
from gpt2.training.guard import Preempted

LOCAL_SERVER = "http://127.0.0.1:4200"

STOPPED = (Preempted, BudgetExceeded)
"""Errors that end a run which can resume from a checkpoint."""

keep_events()  # before the first event of this process


def say(message: str) -> None:
    """Log a line, in the terminal and in Prefect's log of the run."""
    speaker()(message)


def warn(message: str) -> None:
    """Log a warning, in the terminal and in Prefect's log of the run."""
    logger().warning(message)


def speaker() -> Callable[[str], None]:
    """Return `say` bound to this run, for threads without its context."""
    return logger().info


def logger() -> Any:
    """Return the logger of this run, or a general one outside of runs."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("gpt2")


HOOK = re.compile(r"Running hook '\w+' in response|Hook '\w+' finished running successfully")
"""Lines with which Prefect tells of each run that its hooks ran; that one failed is another line."""


class NoTraceback(logging.Filter):
    """Logging filter that removes the tracebacks of errors that users can correct (`ValueError`) or have caused.

    The run's final state has their message. Prefect would print the traceback at every level, as an unexpected error.
    Lines on hooks that ran well are removed, too.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if HOOK.match(str(record.msg)):
            return False
        kind = record.exc_info[0] if isinstance(record.exc_info, tuple) else None
        if kind is not None and issubclass(kind, (ValueError, Preempted, FailedRun)):
            record.exc_info, record.exc_text = None, None
            return "unexpected exception" not in record.msg
        return True


def without_tracebacks() -> None:
    """Keep the tracebacks of users' errors, and Prefect's lines on hooks, out of the logs of runs in this process."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(NoTraceback())


def root_flow_run() -> str:
    """Return the id of the outermost flow run."""
    return str(flow_run.root_flow_run_id or flow_run.id or "none")


def parent_run() -> Run:
    """Return the MLflow run of the whole flow run, which the first stage with something to record makes."""
    tags = {"gpt2.flow_run": root_flow_run(), "gpt2.level": "pipeline", PROCESS: this_process()}
    tags |= prefect_tags(root_flow_run())
    return Run.open(flow_run.name or "pipeline", tags | commit_tag())


@contextlib.contextmanager
def parent_of_all() -> Iterator[Run]:
    """Yield the flow's own MLflow run, which gets the status of the block. Disconnects from Ray at the end."""
    from cluster.connect import disconnect  # Ray

    run = parent_run()
    try:
        yield run
    except BaseException as error:
        run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    finally:
        disconnect()
    run.end()


def prefect_tags(flow_run_id: str) -> dict[str, str]:
    """Return MLflow tags with the Prefect run's id and link. A local server shows the runs of an embedded one."""
    server = (PREFECT_UI_URL.value() or LOCAL_SERVER).rstrip("/")
    url = f"{server}/runs/flow-run/{flow_run_id}"
    return {"prefect.flow_run.id": flow_run_id, "prefect.flow_run.url": url, NOTE: f"[Prefect flow run]({url})"}


def commit_tag() -> dict[str, str]:
    """Return the tag with the commit of this code; {} if it is not a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    git = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"git.commit": git.stdout.strip()} if git.returncode == 0 else {}


def resolved() -> dict[str, Any]:
    """Return the complete settings that this flow run was given."""
    config = flow_run.parameters.get("config", {})
    return config.model_dump(mode="json") if hasattr(config, "model_dump") else dict(config)


def manifest_of(inputs: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return {name: {kind, id, counts}} of the inputs of a key. An outside file has its sha256 as id, and no counts."""
    entries = {}
    for name, id in inputs.items():
        paths = [p for p in store().root.glob(f"*/{id}") if p.parent.name != ".partial"]
        artifact = store().get(paths[0].parent.name, id) if paths else None
        info = artifact.info.items() if artifact else ()
        counts = {k: v for k, v in info if isinstance(v, int) and not isinstance(v, bool)}
        entries[name] = {"kind": artifact.kind if artifact else "file", "id": id, "counts": counts}
    return entries


@contextlib.contextmanager
def recorded(
    name: str, identity: str, settings: Mapping[str, Any], inputs: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """Record the block as an MLflow child run; a retry of the same work continues the same run.

    `inputs` are the ids of its inputs by name.
    """
    parent = parent_run()
    tags = {"gpt2.artifact": identity, "gpt2.stage": name, **prefect_tags(str(flow_run.id or ""))}
    run = Run.open(name, tags | commit_tag(), parent.id)
    if settings:
        run.params(settings)
    run.facts(resolved() or settings, manifest_of(inputs or {}))
    try:
        yield run
    except Exception as error:
        run.end("KILLED" if isinstance(error, STOPPED) else "FAILED")
        raise
    except BaseException:
        run.end("KILLED")
        raise
    run.end()
    show(create_link_artifact, link=run.url, link_text=f"MLflow run: {name}", key=slug(f"mlflow-{name}"))


def make(
    name: str, key: Key, settings: Mapping[str, Any], build: Callable[[Path, Run], Mapping[str, Any] | None]
) -> Artifact:
    """Return the artifact of `key`; if it does not exist, build it inside a recorded run."""
    done = store().find(key)
    if done is not None:
        say(f"{name}: done before ({key.kind}/{key.id})")
        return done
    with recorded(name, key.id, settings, key.inputs) as run:
        artifact = store().make(key, lambda out: build(out, run))
        figures = {k: v for k, v in artifact.info.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        run.metrics(figures)
        run.files(artifact.path / "manifest.json")
    say(f"{name}: made {key.kind}/{key.id} in {artifact.info['seconds']:.0f} s")
    return artifact
