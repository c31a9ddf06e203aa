"""How a flow run ends, and its MLflow runs with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Failed, State

from cluster import tracking

STATUS = {StateType.COMPLETED: "FINISHED", StateType.FAILED: "FAILED"}
"""What MLflow calls it; every other end is KILLED."""


def end_mlflow_runs(flow: Flow, flow_run: FlowRun, state: State) -> None:
    """Called in the run's process, or in the worker's where that is gone."""
    tracking.end_open("gpt2.flow_run", str(flow_run.id), STATUS.get(state.type, "KILLED"))


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
    worker corrects a minute later: `cluster.stopping` has ours there, so that a training saves first.
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
