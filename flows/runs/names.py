"""What a flow run is called: the job, its settings, and the data that it works on; never a random name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from flows.runs.prefect_artifacts import AWAY, impatient

PARTS = " · "
"""Stands between the job and its data."""
SHOWN = 2
"""Sources that a name shows."""


def place(source: str) -> str:
    """Return the short name of a source: `reviews` of `sample:reviews`, `articles` of /data/articles/*.jsonl.gz."""
    path = PurePosixPath(source.partition("?")[0].removeprefix("sample:"))
    named = [part.partition(".")[0] or part for part in path.parts if not set(part) & set("*?[")]
    return next((part for part in reversed(named) if part.strip("/")), source)


def places(sources: Sequence[str]) -> str:
    """Return the short names of sources, of many the first and their number."""
    shown = ", ".join(map(place, sources[:SHOWN]))
    return shown + (f" and {len(sources) - SHOWN} more" if len(sources) > SHOWN else "")


def called(job: str, *data: str) -> str:
    """Return the name of a run: `job · data, more data`."""
    return PARTS.join(filter(None, [job, ", ".join(filter(None, data))]))


def named(name: Callable[..., str]) -> Callable[[], str]:
    """Return Prefect's `flow_run_name` of a flow: `name` of the flow's parameters."""
    return lambda: name(**flow_run.parameters)


def add(fact: str) -> None:
    """Add a fact to the name of this run, once it is known."""
    name = flow_run.name or ""
    if not flow_run.id or fact in name:
        return
    try:
        with impatient(), get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, name=f"{name}, {fact}" if PARTS in name else called(name, fact))
    except AWAY:
        pass  # the log has it, too
