"""What a run from the command line will wait for, started side by side before it."""

from __future__ import annotations

import contextlib
import threading

from cluster.home import samples
from flows.config import PipelineConfig
from gpt2.samples import PREFIX, SampleUnavailable, fetch


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
    from cluster.tracking import end_dead
    from cluster.train import load

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
