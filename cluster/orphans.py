"""No orphans: what a process starts ends with it, however it ends, SIGKILL included.

Such processes have marks in their environment, and hand them on to all that they start. So all of them can be found,
also when their parent was killed, and no others. `python -m cluster.orphans ID SESSION` stops them.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from cluster.home import home, last_state, services

MARK = "GPT2_STARTED_BY"
"""The environment variable that holds the marks, with commas between them."""


class Guard:
    """A shell that waits until this process is gone, or this object, and then stops all that has the mark `id`."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        stop = [sys.executable, "-P", "-m", "cluster.orphans", self.id]
        self.process = subprocess.Popen(
            ["sh", "-c", 'read session || exec "$@" "$session"', "gpt2", *stop],
            stdin=subprocess.PIPE,  # its end is ours; a whole line releases the guard
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # Without a mark, because another guard must not stop this one.
            env={**unmarked(os.environ), "GPT2_HOME": str(home()), "PYTHONPATH": path},
            start_new_session=True,
        )

    def cover(self, session: str) -> None:
        """Stop the agents of this Ray session too."""
        assert self.process.stdin is not None
        self.process.stdin.write(session.encode())
        self.process.stdin.flush()

    def release(self) -> None:
        """Stop nothing any more. What another thread started meanwhile may have the mark, too."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.close()

    def keep(self) -> None:
        """Keep the guard until this process has ended all that it ends itself."""
        atexit.register(self.process.poll)  # called last, as it is registered first


def unmarked(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that may outlive this one."""
    return {name: value for name, value in environment.items() if name != MARK}


@contextlib.contextmanager
def ending_with_this_process() -> Iterator[Guard]:
    """Guard all that is started in the block; yield the guard, which the caller must keep."""
    guard, before = Guard(), os.environ.get(MARK)
    os.environ[MARK] = ",".join(filter(None, (before, guard.id)))
    try:
        yield guard
    finally:
        os.environ.pop(MARK)
        if before is not None:
            os.environ[MARK] = before


def marks(process: psutil.Process) -> list[str]:
    """Return the marks of a process. Raises `psutil.Error` if it is gone."""
    return process.environ().get(MARK, "").split(",")


def marked(id: str, words: Iterable[str] = ()) -> list[psutil.Process]:
    """Return the processes with the mark; with words, only those that have one of them in the command line."""
    words, matching = tuple(words), []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if id not in marks(process) or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if not words or any(word in " ".join(process.cmdline()) for word in words):
                matching.append(process)
    return matching


def ask_to_stop(processes: list[psutil.Process], seconds: float) -> int:
    """Send SIGTERM, and after `seconds` SIGKILL to those still alive; return the number of processes."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
    for process in psutil.wait_procs(processes, timeout=seconds)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return len(processes)


def stop(state: Mapping[str, Any]) -> int:
    """Stop all processes of a `gpt2 up` by its state (`cluster.home.last_state`); return their number.

    The work stops first, so that it can save and report it, then the services in reverse order of their start.
    """
    count = ask_to_stop(marked(state["id"], state["works"]), 25) if state["works"] else 0
    for service in reversed(state.get("services", [])):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(service["pid"])
            if state["id"] in marks(process):
                count += ask_to_stop([process], 15)
    count += ask_to_stop(marked(state["id"]), 5)
    forget(state["id"])
    return count


def forget(id: str) -> None:
    """Remove the state of a `gpt2 up` that has ended. Another one may have started meanwhile."""
    if (last_state() or {}).get("id") == id:
        (services() / "state.json").unlink(missing_ok=True)


def agents(session: str) -> list[psutil.Process]:
    """Return the agents of a Ray session. They wrote their title over the mark, but keep open a log in its folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, IndexError):
            titled = process.cmdline()[0].startswith("ray::")
            if titled and any(f"/{session}/logs/" in file.path for file in process.open_files()):
                found.append(process)
    return found


def stop_orphans(id: str, session: str) -> None:
    """Stop all that has the mark of a process that is gone; the work of a `gpt2 up` first, so that it can save."""
    state = last_state()
    if state is not None and state["id"] == id and state["works"]:
        ask_to_stop(marked(id, state["works"]), 12)
    for _ in range(3):  # a process may have been on its way
        ask_to_stop(marked(id) + (agents(session) if session else []), 5)
        time.sleep(1)
    forget(id)


if __name__ == "__main__":
    stop_orphans(sys.argv[1], sys.argv[2])
