"""The MLflow runs of a flow run end when and as it does."""

from __future__ import annotations

from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import State

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
