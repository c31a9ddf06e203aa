"""What a run from the command line will wait for, started side by side before it."""

from __future__ import annotations

import threading


def start() -> None:
    """Start Prefect's temporary server (where no other is named), Ray, and MLflow's tables; wait for Prefect.

    What goes wrong with Ray shows where it is used. Nothing else may be importing when two threads import: libraries
    with circular imports would be seen half made. So the imports here are one after the other.
    """
    from prefect.client.orchestration import get_client

    def reach_prefect() -> None:
        with get_client(sync_client=True):
            pass

    prefect = threading.Thread(target=reach_prefect)
    prefect.start()

    from cluster.connect import connect_early

    connect_early()
    from cluster.tracking import experiment_id
    from cluster.train import load

    experiment_id()
    load()
    prefect.join()
