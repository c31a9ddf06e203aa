"""Prefect's server and worker as services of `gpt2 up`."""

from __future__ import annotations

import sys

import httpx

from cluster.home import prefect_login
from cluster.services.databases import Profile, prefect_url
from cluster.services.processes import Service, http_answers
from cluster.services.servers import LOOPBACK

WORKER = "gpt2-up"
POOL = "gpt2"


def server(port: int, profile: Profile = "sqlite") -> Service:
    """Return the service of Prefect's API, UI and scheduler, which requires the home's login."""
    address = f"http://{LOOPBACK}:{port}"
    environment = {
        "PREFECT_SERVER_API_AUTH_STRING": prefect_login(),
        "PREFECT_API_AUTH_STRING": prefect_login(),
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"{address},http://localhost:{port}",
        "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "60",
        "PREFECT_UI_API_URL": f"{address}/api",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }
    if profile == "postgres":
        environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = prefect_url()
    return Service(
        "prefect",
        "Prefect",
        (sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)),
        address,
        lambda: http_answers(f"{address}/api/ready"),
        environment=environment,
        ports={"--prefect-port": port},
    )


def worker(at_once: int | None) -> Service:
    """Return the service of the worker, which starts the runs of UI and schedules as processes, at most `at_once` at a
    time."""
    command = ("worker", "start", "--pool", POOL, "--type", "process", "--name", WORKER)
    limit = ("--limit", str(at_once)) if at_once else ()
    return Service(
        "worker",
        "Prefect's worker",
        (sys.executable, "-m", "prefect", *command, *limit),
        f"pool {POOL!r}",
        worker_is_online,
        environment={
            "PREFECT_WORKER_ENABLE_CANCELLATION": "true",
            "PREFECT_RUNNER_CRASH_ON_CANCELLATION_FAILURE": "true",
            "PREFECT_WORKER_WEBSERVER_HOST": LOOPBACK,
            "PREFECT_WORKER_QUERY_SECONDS": "5",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
        },
        works=("prefect.engine", "prefect.flow_engine"),
    )


def worker_is_online() -> bool:
    """Return whether the Prefect server reports our worker as online."""
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            workers = client.read_workers_for_work_pool(POOL)
    except (httpx.HTTPError, OSError):
        return False
    return any(w.name == WORKER and w.status == "ONLINE" for w in workers)
