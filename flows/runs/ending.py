"""`carry_out`: a job in a flow run is refused, found done, or done once; its MLflow runs end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from prefect import Flow
from prefect.artifacts import create_link_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Completed, Failed, State

from cluster.tracking import runs
from flows.runs.locks import claim
from flows.runs.stage import say, without_tracebacks

LEAVING_SECONDS = 25
"""From a SIGTERM to the end of the process at the latest."""

STATUS = {StateType.COMPLETED: "FINISHED", StateType.FAILED: "FAILED"}
"""What MLflow calls it; every other end is KILLED."""


def end_mlflow_runs(flow: Flow, flow_run: FlowRun, state: State) -> None:
    """Called in the run's process, or in the worker's where that is gone."""
    runs.end_open("gpt2.flow_run", str(flow_run.id), STATUS.get(state.type, "KILLED"))


HOOKS: dict[str, Any] = {
    "on_completion": [end_mlflow_runs],
    "on_failure": [end_mlflow_runs],
    "on_cancellation": [end_mlflow_runs],
    "on_crashed": [end_mlflow_runs],
}
"""For an outermost flow: of `@flow` or `with_options`."""


def or_cancelled(work: Callable[[], Any]) -> Any:
    """What the work returns; the state Cancelled where a SIGTERM stopped it because somebody cancels this flow run, and
    Failed with a sentence alone where a user can mend it (`ValueError`, which a caller of the flow gets as it is).

    Prefect takes a SIGTERM for a cancellation only while the handler of it is its own, and else for a crash, which its
    worker corrects a minute later: `cluster.training.stopping` has ours there, so that a training saves first.
    """
    try:
        return work()
    except ValueError as error:
        return Failed(message=str(error), data=error)
    except TerminationSignal:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(this_run.id).state
        if state is None or not state.is_cancelling():
            raise
        return Cancelled(message="Cancelled. Run it again, and it goes on where it stopped.")


class JobPlan(Protocol):
    """All that is decided about a job before anything starts."""

    @property
    def identity(self) -> str:
        """The same for jobs that would make the same."""

    def nothing(self) -> str | None:
        """Why there is nothing to do; None where there is something."""


P = TypeVar("P", bound=JobPlan)


def carry_out(prepare: Callable[[], P], work: Callable[[P], Any], already: Callable[[P], Any] | None = None) -> Any:
    """Do a job, equal ones once; returns the result of `work`, or the state that the flow run ends with.

    A `ValueError` of `prepare` refuses the job. Where the plan has nothing to do, `already` returns the data of the
    state; without it the work is done all the same. Work that trains takes its `flows.runs.locks.turn`.
    """
    without_tracebacks()
    try:
        plan = prepare()
        identity = plan.identity
        reason = plan.nothing() if already else None
    except ValueError as error:
        return Failed(message=f"refused: {error}")
    if already and reason:
        say(f"Nothing to do: {reason}")
        return Completed(message=f"Nothing to do: {reason}", data=already(plan))
    runs.end_dead()
    with claim(identity) as holder:
        if holder is not None:
            return duplicate(holder)
        with leaving_in_time():
            return or_cancelled(lambda: work(plan))


@contextlib.contextmanager
def leaving_in_time() -> Iterator[None]:
    """A SIGTERM, whoever handles it, ends this process in `LEAVING_SECONDS` at the latest: threads may be at work that
    nothing can interrupt, and Prefect would wait a little longer than was promised."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, signalled = socket.socketpair()
    signalled.setblocking(False)

    def watch() -> None:
        while number := ours.recv(1):
            if number[0] == signal.SIGTERM:
                time.sleep(LEAVING_SECONDS)
                os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    before = signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signalled.close()


def duplicate(holder: dict[str, Any]) -> State:
    """The end of a run whose work another run is doing."""
    if holder["url"]:
        create_link_artifact(link=holder["url"], link_text=f"Run {holder['run']}", key="the-run-that-does-it")
    message = f"{holder['run']} is doing the same; this run leaves it to that one. {holder['url']}".strip()
    say(message)
    return Completed(name="Duplicate", message=message)
