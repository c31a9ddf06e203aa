"""Secrets of the services of this home. Each is a file readable by its owner only, made before any service starts."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from cluster.home import services

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
