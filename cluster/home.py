"""Where local state lives, and the environment that every process of ours runs in."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gpt2.store.artifact import Store, write_atomically

PAGES = "pages"


def path(name: str) -> Path:
    """Where the page of that name lies."""
    return home() / PAGES / f"{name}.html"


def keep(name: str, text: str) -> Path:
    """Write the page of that name, whole or not at all; returns its path, which stays the same."""
    page = path(name)
    page.parent.mkdir(exist_ok=True)
    write_atomically(page, text.encode())
    return page


# Ray's sockets lie at most this much deeper than its temporary folder (the dashboard's are the deepest, with a process
# id of seven digits); the system allows a socket's path 107 bytes.
RAY_SOCKET_SUFFIX = 68

SERVICES = "services"

CONTENTS = {"store", "mlflow", "prefect", "ray", "samples", "pulled", "pages", SERVICES, "logs"}
"""What we put into a home."""


def home() -> Path:
    """The folder of all local state: `GPT2_HOME`, or `.gpt2` in the working directory. Made on first use, closed to
    other users."""
    path = Path(os.environ.get("GPT2_HOME") or ".gpt2").resolve()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def services() -> Path:
    """The folder of the services that `gpt2 up` starts: state and secrets, closed to others. Made on first use."""
    folder = home() / SERVICES
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def last_state() -> dict[str, Any] | None:
    """What the last `gpt2 up` of this home wrote (`cluster.services.processes`), running or not."""
    try:
        return json.loads((home() / SERVICES / "state.json").read_text())
    except (OSError, ValueError):
        return None


def running() -> dict[str, Any] | None:
    """The state of the `gpt2 up` of this home where it is running and ready, else None."""
    state = last_state()
    return state if state is not None and state["ready"] and is_locked() else None


def is_locked() -> bool:
    """Whether a `gpt2 up` of this home is alive: it holds a lock that the system releases with it."""
    try:
        with open(home() / SERVICES / "lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def store() -> Store:
    """The artifact store of this home."""
    return Store(home() / "store")


def samples() -> Path:
    """Where sample data is kept."""
    return home() / "samples"


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite file in the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def clean() -> Path:
    """Remove the home, and Ray's link to it. `ValueError` for a folder that is not a home of ours."""
    folder = home()
    if is_locked():
        raise ValueError(f"the services of {folder} are running; stop them with `gpt2 down` first")
    strangers = [p.name for p in folder.iterdir() if p.name not in CONTENTS]
    if strangers:
        raise ValueError(f"{folder} holds {strangers[0]!r}, which is not ours; remove it yourself or mend GPT2_HOME")
    ray_link(folder / "ray").unlink(missing_ok=True)
    shutil.rmtree(folder)
    return folder


def ray_link(folder: Path) -> Path:
    return Path(tempfile.gettempdir()) / f"gpt2-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"


def ray_folder() -> Path:
    """Ray's temporary folder in the home; behind a short link where the path is too long for its sockets."""
    folder = home() / "ray"
    folder.mkdir(exist_ok=True)
    if len(os.fsencode(folder)) + RAY_SOCKET_SUFFIX <= 107:
        return folder
    link = ray_link(folder)
    if not (link.is_symlink() and link.resolve() == folder):
        link.unlink(missing_ok=True)
        link.symlink_to(folder)
    return link
