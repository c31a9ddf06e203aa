"""Retry calls to an MLflow server that is away for a while; fail early if it never answered."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import requests
from mlflow.exceptions import MlflowException

PATIENCE = 900.0
"""Seconds that a call waits for a server that has answered before."""
FIRST = 3.0
"""Seconds that a call waits for a server that has never answered, since the address may be wrong."""
PAUSE = 5.0
"""Longest pause between two tries (s)."""
FAILURES = (MlflowException, requests.RequestException)
"""Errors that MLflow's client raises."""
LOGGER = logging.getLogger("gpt2.mlflow")

_answered = threading.Event()
_told = threading.Event()


class Unreachable(ValueError):
    """Raised where no MLflow server has ever answered at the address."""


class NoLogin(ValueError):
    """Raised where the MLflow server requires a login, and got none or a wrong one."""


class RetryingClient:
    """An MLflow client that retries its calls while the server does not answer (`call_with_retries`)."""

    def __init__(self, client: Any):
        self._client = client

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return partial(call_with_retries, value) if callable(value) else value


def call_with_retries(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function, and retry while the server does not answer; return the result.

    It logs one warning per outage. Raises `Unreachable` if the server has never answered. Repeating is safe for
    metrics, tags and parameters: MLflow stores the same value of the same step and time once.
    """
    started, pause = time.monotonic(), 0.5
    while True:
        try:
            result = call(*arguments, **named)
        except FAILURES as error:
            if "error code 401" in str(error):
                raise NoLogin(
                    "MLflow refuses the login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                ) from None
            if not unanswered(error):
                raise
            waited = time.monotonic() - started
            if not _answered.is_set() and waited > FIRST:
                raise Unreachable(
                    f"MLflow does not answer ({reason(error)}); start it, or correct the address"
                ) from None
            if waited > PATIENCE:
                raise
            if not _told.is_set():
                _told.set()
                LOGGER.warning("MLflow does not answer; records wait for it, up to %.0f s", PATIENCE)
            time.sleep(pause)
            pause = min(2 * pause, PAUSE)
        else:
            _answered.set()
            if _told.is_set():
                _told.clear()
                LOGGER.warning("MLflow answers again")
            return result


def forget() -> None:
    """Treat the server as one that has never answered: another address is asked from now on."""
    _answered.clear()


def unanswered(error: BaseException) -> bool:
    """Return whether an error means that no server answered, or that it is unavailable for now (502, 503, 504)."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (502, 503, 504) or any(f"error code {code}" in str(error) for code in (502, 503, 504)):
        return True
    gone = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return any(isinstance(e, gone) for e in (error, error.__cause__, error.__context__))


def reason(error: BaseException) -> str:
    """Return a short reason of a long error: the address and the system's message."""
    inner = error.__cause__ or error.__context__ or error
    address = getattr(getattr(inner, "request", None), "url", None) or "the address in MLFLOW_TRACKING_URI"
    said = "connection refused" if "refused" in str(inner) else type(inner).__name__
    return f"{address.split('/api/')[0]}: {said}"
