"""Services of a run from the command line: started side by side before it, and waited for when they go away.

A Prefect server may go away for minutes. Requests are tried again (`PREFECT_CLIENT_MAX_RETRIES`, set in
`cluster.process_env`), and so are events, among them the states of tasks, which Prefect would drop after ten seconds. A
run that Prefect took for dead meanwhile, as no heartbeat came through, says that it lives.
"""

from __future__ import annotations

import contextlib
import threading

from prefect.client.orchestration import get_client
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.runtime import flow_run as this_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Running

from cluster.home import samples
from flows.config import PipelineConfig
from gpt2.data.samples import PREFIX, SampleUnavailable, fetch

SILENCE = "Its process has died: no heartbeat. Run it again, and it goes on where it stopped."
"""Why the automation marks a run as crashed."""
LIVES = "It lives: Prefect did not hear it for a while."


def say_alive() -> None:
    """Correct the state of this flow run, and of the one that it is a part of. Raises what the client raises."""
    with get_client(sync_client=True) as client:
        for id in filter(None, (this_run.id, this_run.parent_flow_run_id)):
            state = client.read_flow_run(id).state
            if state is not None and state.is_crashed() and state.message == SILENCE:
                client.set_flow_run_state(id, Running(message=LIVES), force=True)


ATTEMPTS = 600
"""Tries to reach the server again, a second apart."""


def keep_events() -> None:
    """Keep events until a server that went away is back; an embedded server lives as long as this process."""
    if PREFECT_API_URL.value():
        EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=ATTEMPTS)


def start(config: PipelineConfig) -> None:
    """Start Prefect's temporary server (where no other is named), Ray, MLflow's tables and the download of samples;
    wait for Prefect.

    What goes wrong with Ray shows where it is used. Nothing else may be importing when two threads import: libraries
    with circular imports would be seen half made. So the imports here are one after the other.
    """
    from prefect.client.orchestration import get_client

    def reach_prefect() -> None:
        with get_client(sync_client=True):
            pass

    prefect = threading.Thread(target=reach_prefect)
    prefect.start()

    threading.Thread(target=fetch_samples, args=(config,), daemon=True).start()

    from cluster.connect import connect_early

    connect_early()
    from cluster.tracking.runs import end_dead
    from cluster.training.launch import load

    end_dead()
    load()
    prefect.join()


def fetch_samples(config: PipelineConfig) -> None:
    """Fetch the samples that a run will need; what can't be had shows where it is needed."""
    sources = [*config.corpus.sources, *(t.source for t in config.task_settings().values())]
    for source in sources:
        if source.startswith(PREFIX):
            with contextlib.suppress(SampleUnavailable, ValueError):
                fetch(source.removeprefix(PREFIX), samples())
