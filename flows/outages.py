"""A Prefect server that goes away for minutes: requests are tried again (`PREFECT_CLIENT_MAX_RETRIES`, set in
`cluster.home`), and so are events, among them the states of tasks, which Prefect would drop after ten seconds."""

from __future__ import annotations

from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL

ATTEMPTS = 600
"""Tries to reach the server again, a second apart."""


def keep_events() -> None:
    """Keep events until a server that went away is back; an embedded server lives as long as this process."""
    if PREFECT_API_URL.value():
        EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=ATTEMPTS)
