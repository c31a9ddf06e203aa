"""Secrets of a home's own services: each a file that its owner alone can read, made before anything listens."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from cluster.home import services

USER = "gpt2"
"""Who logs in at Prefect and MLflow."""
RAY_TOKEN = "ray-token"
MLFLOW_PASSWORD = "mlflow-password"
PREFECT_LOGIN = "prefect-login"


def secret_file(name: str, prefix: str = "") -> Path:
    """Path of the secret of that name, made on first use: the prefix and 64 hexadecimal digits, mode 0600."""
    path = services() / name
    if not path.exists():
        aside = path.with_name(f".{name}.{os.getpid()}.tmp")
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w") as stream:
            stream.write(prefix + secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another process was faster: its secret counts
            os.link(aside, path)
        aside.unlink()
    return path


def ray_token() -> dict[str, str]:
    """The environment of a Ray that asks for this home's token. Left to itself Ray writes one as the umask gives it,
    for all to read. Needed before Ray is imported."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(secret_file(RAY_TOKEN))}


def prefect_login() -> str:
    """What Prefect's API of this home asks for: USER:PASSWORD."""
    return secret_file(PREFECT_LOGIN, f"{USER}:").read_text()
