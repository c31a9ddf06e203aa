"""What those without a login may try at the services of `gpt2 up`, and what there is to be changed."""

import contextlib
import http.client
import sqlite3
from pathlib import Path

import psutil

from tests.flows.running import Up, basic

STRANGERS = (
    {},
    {"Authorization": basic("gpt2:guessed")},
    {"Authorization": basic("admin:password")},
    {"Authorization": "Bearer guessed"},
    {"Host": "evil.example"},
    {"Origin": "http://evil.example", "Referer": "http://evil.example/"},
    {"Origin": "http://evil.example", "Content_Type": "text/plain"},  # which a browser sends without asking first
)
"""Headers of each."""


def changes(owned: Path) -> list[tuple[str, str, dict]]:
    """Requests that would change something somewhere: method, path, body. A job would make the file `owned`."""
    job = {"entrypoint": f"touch {owned}"}
    return [
        ("POST", "/api/variables/", {"name": "evil", "value": "1"}),
        ("POST", "/api/flows/", {"name": "evil"}),
        ("POST", "/api/admin/database/clear", {"confirm": True}),
        ("POST", "/api/2.0/mlflow/experiments/create", {"name": "evil"}),
        ("POST", "/ajax-api/2.0/mlflow/registered-models/create", {"name": "evil"}),
        ("POST", "/api/2.0/mlflow/users/create", {"username": "evil", "password": "evil-evil-evil"}),
        ("PATCH", "/api/2.0/mlflow/users/update-password", {"username": "gpt2", "password": "evil-evil-evil"}),
        ("POST", "/graphql", {"query": "mutation { evil }"}),
        ("POST", "/api/jobs/", job),
        ("POST", "/api/job_agent/jobs/", job),
        ("PUT", "/api/serve/applications/", {"applications": []}),
        ("POST", "/", job),
    ]


def listeners(processes: list[psutil.Process]) -> list[tuple[str, int]]:
    """Address and port of each socket that the processes listen on."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((connection.laddr.ip, connection.laddr.port))
    return sorted(found)


def speaks_http(port: int) -> bool:
    """Whether an HTTP/1.1 request is answered with a status (gRPC's HTTP/2 is not)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status > 0
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def everything(up: Up) -> dict[str, list]:
    """What is recorded: rows that a stranger might add or remove, and logins."""
    queries = {
        up.home / "mlflow" / "mlflow.db": ("select name from experiments", "select name from registered_models"),
        up.home / "services" / "mlflow-logins.db": ("select username, password_hash from users",),
        up.home / "prefect" / "prefect.db": (
            "select name from variable",
            "select name from flow",
            "select name from deployment",
            "select name from block_document",
        ),
    }
    found = {}
    for path, texts in queries.items():
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30) as database:
            found |= {text: sorted(database.execute(text)) for text in texts}
    return found
