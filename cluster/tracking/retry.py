"""An MLflow server that goes away for a while is waited for; one that was never there is named at once."""

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
FIRST = 10.0
"""Seconds for one that has not: the address may be wrong."""
PAUSE = 5.0
"""Longest time between two tries (s)."""
FAILURES = (MlflowException, requests.RequestException)
"""What MLflow's client raises."""
LOGGER = logging.getLogger("gpt2.mlflow")

_answered = threading.Event()
_told = threading.Event()


class Unreachable(ValueError):
    """There is no MLflow server at the address given."""


class NoLogin(ValueError):
    """The MLflow server asks for a login, and has got none or a wrong one."""


class RetryingClient:
    """An MLflow client whose calls wait for the server (`patiently`)."""

    def __init__(self, client: Any):
        self._client = client

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return partial(patiently, value) if callable(value) else value


def patiently(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call, again where the server does not answer, with a warning the first time; `Unreachable` where it never did.

    Safe for metrics, tags and parameters: MLflow keeps the same value of the same step and time once.
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
                raise Unreachable(f"MLflow does not answer ({reason(error)}); start it or mend the address") from None
            if waited > PATIENCE:
                raise
            if not _told.is_set():
                _told.set()
                LOGGER.warning("MLflow does not answer; what is to be recorded waits, up to %.0f s", PATIENCE)
            time.sleep(pause)
            pause = min(2 * pause, PAUSE)
        else:
            _answered.set()
            if _told.is_set():
                _told.clear()
                LOGGER.warning("MLflow answers again")
            return result


def unanswered(error: BaseException) -> bool:
    """Whether an error means that no server answered, or one that says that it can't now."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (502, 503, 504) or any(f"error code {code}" in str(error) for code in (502, 503, 504)):
        return True
    gone = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return any(isinstance(e, gone) for e in (error, error.__cause__, error.__context__))


def reason(error: BaseException) -> str:
    """The address and what the system says of it, of an error that is long."""
    inner = error.__cause__ or error.__context__ or error
    address = getattr(getattr(inner, "request", None), "url", None) or "the address in MLFLOW_TRACKING_URI"
    said = "connection refused" if "refused" in str(inner) else type(inner).__name__
    return f"{address.split('/api/')[0]}: {said}"
