"""The home, GPT2_HOME: its folders, the state and secrets of its services, its latest pages.

A secret is a file that its owner alone can read, made before anything listens.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gpt2.store.artifact import Store, write_atomically
from gpt2.store.remote import open_store

# Length (bytes) that Ray's deepest socket adds to the path of its temporary folder, for a process id of seven digits.
# The system allows a socket's path 107 bytes.
RAY_SOCKET_SUFFIX = 68

SERVICES = "services"

CONTENTS = {"store", "cache", "mlflow", "prefect", "ray", "samples", "pulled", "pages", SERVICES, "logs"}
"""Names of the files and folders that belong in a home."""


def home() -> Path:
    """Return the folder of all local state: `GPT2_HOME`, or `.gpt2` in the working directory.

    It is made on first use, readable by its owner only (mode 0700).
    """
    path = Path(os.environ.get("GPT2_HOME") or ".gpt2").resolve()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def services() -> Path:
    """Return the folder with state and secrets of the services that `gpt2 up` starts.

    It is made on first use, readable by its owner only (mode 0700).
    """
    folder = home() / SERVICES
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def last_state() -> dict[str, Any] | None:
    """Return the state that the last `gpt2 up` of this home wrote (`cluster.services.processes`), running or not; None
    if there is none."""
    try:
        return json.loads((home() / SERVICES / "state.json").read_text())
    except (OSError, ValueError):
        return None


def running() -> dict[str, Any] | None:
    """Return the state of the `gpt2 up` of this home if it is running and ready, else None."""
    state = last_state()
    return state if state is not None and state["ready"] and is_locked() else None


def is_locked() -> bool:
    """Return whether a `gpt2 up` of this home is alive. It holds a lock that the system releases when it ends."""
    try:
        with open(home() / SERVICES / "lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def store() -> Store:
    """Return the artifact store: `GPT2_STORE`, a folder or any fsspec address, or `store` in the home.

    Of a remote store the home has a cache. `StoreUnreachable` within seconds if it does not answer.
    """
    return _opened(os.environ.get("GPT2_STORE"), home())


@functools.lru_cache(maxsize=4)
def _opened(address: str | None, folder: Path) -> Store:
    return open_store(address, folder, store)


def samples() -> Path:
    """Return the folder of the sample data."""
    return home() / "samples"


def tracking_uri() -> str:
    """Return MLflow's address: `MLFLOW_TRACKING_URI`, or a SQLite file in the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def clean() -> Path:
    """Remove the home and Ray's link to it; return its path.

    Raises `ValueError` if its services are running, or if the folder holds a file that does not belong in a home.
    """
    folder = home()
    if is_locked():
        raise ValueError(f"{folder}: its services are running; stop them with `gpt2 down` first")
    strangers = [p.name for p in folder.iterdir() if p.name not in CONTENTS]
    if strangers:
        raise ValueError(
            f"{folder}: holds {strangers[0]!r}, which gpt2 did not make; remove it yourself, or correct GPT2_HOME"
        )
    ray_link(folder / "ray").unlink(missing_ok=True)
    shutil.rmtree(folder)
    return folder


def ray_link(folder: Path) -> Path:
    """Return the place of the short link to Ray's folder: in the system's temporary folder, or in /tmp where that path
    is too long itself."""
    name = f"gpt2-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"
    link = Path(tempfile.gettempdir()) / name
    return link if fits_sockets(link) else Path("/tmp") / name


def fits_sockets(folder: Path) -> bool:
    """Return whether Ray's sockets in the folder have paths that the system allows."""
    return len(os.fsencode(folder)) + RAY_SOCKET_SUFFIX <= 107


def ray_folder() -> Path:
    """Return Ray's temporary folder in the home, or a short link to it if the path is too long for Ray's sockets."""
    folder = home() / "ray"
    folder.mkdir(exist_ok=True)
    if fits_sockets(folder):
        return folder
    link = ray_link(folder)
    if not (link.is_symlink() and link.resolve() == folder):
        link.unlink(missing_ok=True)
        link.symlink_to(folder)
    return link


PAGES = "pages"


def path(name: str) -> Path:
    """Return the path of the HTML page of that name."""
    return home() / PAGES / f"{name}.html"


def keep(name: str, text: str) -> Path:
    """Write the HTML page of that name atomically; return its path, which never changes."""
    page = path(name)
    page.parent.mkdir(exist_ok=True)
    write_atomically(page, text.encode())
    return page


USER = "gpt2"
"""User name at Prefect and MLflow."""
RAY_TOKEN = "ray-token"
MLFLOW_PASSWORD = "mlflow-password"
PREFECT_LOGIN = "prefect-login"


def secret_file(name: str, prefix: str = "") -> Path:
    """Return the path of the named secret, which is made on first use: the prefix and 64 hexadecimal digits, mode
    0600."""
    path = services() / name
    if not path.exists():
        aside = path.with_name(f".{name}.{os.getpid()}.tmp")
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w") as stream:
            stream.write(prefix + secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another process was faster; its secret is used
            os.link(aside, path)
        aside.unlink()
    return path


def ray_token() -> dict[str, str]:
    """Return the environment variables that make Ray require this home's token. Set them before Ray is imported.

    Without them, Ray writes a token of its own with the permissions of the umask, which others may be able to read.
    """
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(secret_file(RAY_TOKEN))}


def prefect_login() -> str:
    """Return the login of this home's Prefect API, as USER:PASSWORD."""
    return secret_file(PREFECT_LOGIN, f"{USER}:").read_text()
