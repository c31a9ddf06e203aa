"""Services of a run from the command line: started side by side before it, and waited for when they go away.

A Prefect server may go away for minutes. Requests are tried again (`PREFECT_CLIENT_MAX_RETRIES`, set in
`cluster.process_env`), and so are events, among them the states of tasks, which Prefect would drop after ten seconds. A
run that Prefect took for dead meanwhile, as no heartbeat came through, says that it lives.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from prefect.client.orchestration import get_client
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.runtime import flow_run as this_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Running

from cluster.home import samples
from cluster.services.doctor import require_servers
from flows.config import PipelineConfig
from gpt2.data.samples import PREFIX, SampleUnavailable, fetch

SILENCE = "Its process has died: no heartbeat. Run it again, and it goes on where it stopped."
"""Message with which the automation marks a run as crashed."""
LIVES = "It lives: Prefect did not hear it for a while."


def say_alive() -> None:
    """Set this flow run and its parent back to Running if the automation marked them as crashed. Raises the client's
    errors."""
    with get_client(sync_client=True) as client:
        for id in filter(None, (this_run.id, this_run.parent_flow_run_id)):
            state = client.read_flow_run(id).state
            if state is not None and state.is_crashed() and state.message == SILENCE:
                client.set_flow_run_state(id, Running(message=LIVES), force=True)


ATTEMPTS = 600
"""Number of tries to reconnect to the server, one second apart."""


def keep_events() -> None:
    """Keep events until an absent server answers again. An embedded server needs no such retries."""
    if PREFECT_API_URL.value():
        EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=ATTEMPTS)


def start(config: PipelineConfig) -> None:
    """Start Prefect's temporary server (unless one is named), Ray, MLflow's tables and the download of samples.

    Raises `ValueError` for a named server that does not answer, and where the first sample can't be had, before it
    starts anything. Waits for Prefect only. Imports are done one after the
    other, because concurrent imports may see partially initialised modules.
    """
    require_servers()
    wanted = wanted_samples(config)
    if wanted:
        fetch(wanted[0], samples())
    from prefect.client.orchestration import get_client

    def reach_prefect() -> None:
        with get_client(sync_client=True):
            pass

    prefect = threading.Thread(target=reach_prefect)
    prefect.start()

    threading.Thread(target=fetch_others, args=(wanted[1:],), daemon=True).start()

    from cluster.connect import connect_early

    connect_early()
    from cluster.tracking.runs import end_dead
    from cluster.training.launch import load

    end_dead()
    load()
    prefect.join()


def wanted_samples(config: PipelineConfig) -> list[str]:
    """Return the names of the samples that a run will need."""
    sources = [*config.corpus.sources, *(t.source for t in config.task_settings().values())]
    return [source.removeprefix(PREFIX) for source in sources if source.startswith(PREFIX)]


def fetch_others(names: Sequence[str]) -> None:
    """Fetch samples. Errors are raised later, where a sample is used."""
    for name in names:
        with contextlib.suppress(SampleUnavailable, ValueError):
            fetch(name, samples())
