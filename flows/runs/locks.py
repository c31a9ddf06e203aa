"""Runs that would be in each other's way: one of equal ones, and one training at a time.

A claim is a lock of the file system on the store's disk: the system frees it with the process that holds it, however
that ends, and it holds between the command line, the Prefect UI and schedules alike.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from prefect.runtime import flow_run

from cluster.home import store
from flows.runs.stage import say

TRAINING = "training"


def holder_facts() -> dict[str, Any]:
    """Who holds a claim, for those who would like it."""
    return {
        "run": flow_run.name or f"process {os.getpid()}",
        "url": flow_run.ui_url or "",
        "id": str(flow_run.id or ""),
    }


@contextlib.contextmanager
def claim(name: str) -> Iterator[dict[str, Any] | None]:
    """Try to hold `name` for a while; yields None where that worked, else who holds it."""
    folder = store().root / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"run-{name}", "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            with contextlib.suppress(ValueError):
                yield json.loads(handle.read())
                return
            yield {"run": "another run", "url": "", "id": ""}  # it has not yet written who it is
            return
        handle.truncate(0)
        handle.write(json.dumps(holder_facts()))
        handle.flush()
        yield None


@contextlib.contextmanager
def turn(name: str = TRAINING) -> Iterator[None]:
    """Hold `name` for a while, after those who want it too; says whom it waits for."""
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
