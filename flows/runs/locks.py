"""Concurrency locks: identical runs execute once, and one training runs at a time.

A claim is a lock in the store, shared by the command line, the Prefect UI and schedules. It is freed when the process
that holds it ends, in whatever way: by the system, or within a minute where the store is on no disk.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from prefect.runtime import flow_run

from cluster.home import store
from flows.runs.stage import say

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
