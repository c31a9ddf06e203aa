"""Consoles and options that commands share, and their connection to Prefect."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
"""For sentences and paths, without line breaks, so that they can be copied."""
tables = Console()
"""For tables, fitted to the width of the terminal."""
err = Console(stderr=True)

Changes = Annotated[list[str] | None, Parameter(name="--set", negative="")]
DryRun = Annotated[bool, Parameter(negative="")]


@contextlib.contextmanager
def prefect() -> Iterator[None]:
    """Connect to Prefect's server, a temporary one if none is named, while libraries are imported.

    Raises `ValueError` for a named server that does not answer.
    """
    from cluster.services.doctor import require_servers

    require_servers()
    from prefect.client.orchestration import get_client

    def reach() -> None:
        with get_client(sync_client=True):
            pass

    reaching = threading.Thread(target=reach)
    reaching.start()
    from flows.runs.stage import without_tracebacks

    without_tracebacks()
    reaching.join()
    yield
