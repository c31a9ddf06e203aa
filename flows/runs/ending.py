"""`carry_out`: a job in a flow run is refused, found done, or done once; its MLflow runs end with it.

A claim is a lock in the store, shared by the command line, the Prefect UI and schedules: equal runs execute once, and
one training runs at a time. It is freed when the process that holds it ends, in whatever way: by the system, or within
a minute where the store is on no disk.
"""

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
from prefect.runtime import flow_run
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Completed, Failed, State

from cluster.home import store
from cluster.tracking import runs
from flows.runs.stage import say, without_tracebacks

LEAVING_SECONDS = 25
"""Most seconds from a SIGTERM to the end of the process."""

STATUS = {StateType.COMPLETED: "FINISHED", StateType.FAILED: "FAILED"}
"""MLflow's status by Prefect's state; all other states are KILLED."""


def end_mlflow_runs(flow: Flow, flow_run: FlowRun, state: State) -> None:
    """End the MLflow runs of a flow run. Prefect calls it in the run's process, or in the worker's if that is gone."""
    runs.end_open("gpt2.flow_run", str(flow_run.id), STATUS.get(state.type, "KILLED"))


HOOKS: dict[str, Any] = {
    "on_completion": [end_mlflow_runs],
    "on_failure": [end_mlflow_runs],
    "on_cancellation": [end_mlflow_runs],
    "on_crashed": [end_mlflow_runs],
}
"""Options of `@flow` or `with_options` for an outermost flow."""


def or_cancelled(work: Callable[[], Any]) -> Any:
    """Return the result of `work`, or the state Cancelled if a cancellation of this flow run stopped it by SIGTERM.

    Returns the state Failed for a `ValueError`, with its message. A caller of the flow gets the error itself.

    Prefect treats a SIGTERM as a cancellation only while its own handler is installed. Otherwise it records a crash,
    which its worker corrects a minute later. `cluster.training.stopping` installs our handler, so that a training saves
    first.
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
    """The plan of a job: all that is decided before anything starts."""

    @property
    def identity(self) -> str:
        """Return an id that is the same for jobs that would make the same artifacts."""

    def nothing(self) -> str | None:
        """Return why there is nothing to do; None if there is something to do."""


P = TypeVar("P", bound=JobPlan)


def carry_out(prepare: Callable[[], P], work: Callable[[P], Any], already: Callable[[P], Any] | None = None) -> Any:
    """Carry out a job, but not twice at the same time; return the result of `work`, or the flow run's final state.

    A `ValueError` of `prepare` refuses the job. If the plan has nothing to do, `already` returns the data of the state;
    without `already` the work is done in any case. Work that trains takes its `turn`.
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
    """Kill this process `LEAVING_SECONDS` after a SIGTERM, whichever handler runs.

    Threads may be at work that nothing can interrupt, and Prefect would wait longer.
    """
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
    """Return the final state of a run whose work another run is doing, and link to that run."""
    if holder["url"]:
        create_link_artifact(link=holder["url"], link_text=f"Run {holder['run']}", key="the-run-that-does-it")
    message = f"{holder['run']} is doing the same, so this run ends. {holder['url']}".strip()
    say(message)
    return Completed(name="Duplicate", message=message)


TRAINING = "training"


def holder_facts() -> dict[str, Any]:
    """Return the facts on this run that the holder of a claim writes, for runs that wait."""
    return {
        "run": flow_run.name or f"process {os.getpid()}",
        "url": flow_run.ui_url or "",
        "id": str(flow_run.id or ""),
    }


@contextlib.contextmanager
def claim(name: str) -> Iterator[dict[str, Any] | None]:
    """Try to lock `name` during the block; yield None if it worked, else the facts on its holder."""
    with store().hold(f"run-{name}", holder_facts(), wait=False) as holder:
        # A holder that has not written its facts yet is "another run".
        yield None if holder is None else {"run": "another run", "url": "", "id": "", **holder}


@contextlib.contextmanager
def turn(name: str = TRAINING) -> Iterator[None]:
    """Lock `name` during the block, waiting for its holder; log which run holds it."""
    announced = None
    while True:
        with claim(name) as holder:
            if holder is None:
                yield
                return
        if holder != announced:
            say(f"waiting for {holder['run']}: one training at a time {holder['url']}".rstrip())
            announced = holder
        time.sleep(1)
