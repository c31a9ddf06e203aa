"""MLflow's server and a local Ray as services of `gpt2 up`, each on loopback.

`python -m cluster.services.servers PORT DASHBOARD_PORT` is the process of the Ray head, until SIGTERM.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from pathlib import Path

from cluster.home import MLFLOW_PASSWORD, USER, home, ray_token, secret_file, services
from cluster.process_env import configure
from cluster.services.databases import Profile, mlflow_url
from cluster.services.processes import Service, http_answers, port_answers
from gpt2.store.artifact import write_atomically

LOOPBACK = "127.0.0.1"


def mlflow(port: int, profile: Profile = "sqlite") -> Service:
    """Return the service of MLflow's tracking server and registry, which require the home's login.

    Artifacts lie in the home. Clients on this machine read them directly; other clients get them from the server.
    """
    folder = home() / "mlflow"
    folder.mkdir(exist_ok=True)
    artifacts = (folder / "artifacts").as_uri()
    origins = f"http://{LOOPBACK}:{port},http://localhost:{port}"
    options = {
        "app-name": "basic-auth",
        "host": LOOPBACK,
        "port": str(port),
        "workers": "1",
        "default-artifact-root": artifacts,
        "artifacts-destination": artifacts,
        "allowed-hosts": f"{LOOPBACK}:{port},localhost:{port}",
        "cors-allowed-origins": origins,
        "x-frame-options": "DENY",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    address = f"http://{LOOPBACK}:{port}"
    return Service(
        "mlflow",
        "MLflow",
        (sys.executable, "-m", "mlflow", "server", *words),
        address,
        lambda: http_answers(f"{address}/health"),
        environment={
            "MLFLOW_BACKEND_STORE_URI": mlflow_url() if profile == "postgres" else f"sqlite:///{folder / 'mlflow.db'}",
            "MLFLOW_AUTH_CONFIG_PATH": str(logins()),
            "MLFLOW_AUTH_ADMIN_USERNAME": USER,
            "MLFLOW_AUTH_ADMIN_PASSWORD": secret_file(MLFLOW_PASSWORD).read_text(),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        },
        ports={"--mlflow-port": port},
    )


def logins() -> Path:
    """Write MLflow's login settings; return their path. Only the home's user can log in until they add others.

    The database of logins lies beside the password, because MLflow keeps the password of its first start.
    """
    lines = (
        "[mlflow]",
        "default_permission = NO_PERMISSIONS",
        f"database_uri = sqlite:///{services() / 'mlflow-logins.db'}".replace("%", "%%"),
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds = 60",  # hashing a password takes longer than most requests
    )
    (services() / "mlflow-logins.db").touch(0o600)
    path = services() / "mlflow-logins.ini"
    write_atomically(path, "\n".join(lines).encode())
    return path


def ray(port: int, dashboard_port: int) -> Service:
    """Return the service of a Ray head with this machine's cores, which requires the home's token."""
    address = f"http://{LOOPBACK}:{dashboard_port}"
    return Service(
        "ray",
        "Ray",
        (sys.executable, "-m", "cluster.services.servers", str(port), str(dashboard_port)),
        address,
        lambda: port_answers(LOOPBACK, port) and http_answers(f"{address}/api/version"),
        environment=ray_token(),
        ports={"--ray-port": port, "--ray-dashboard-port": dashboard_port},
    )


def ray_head() -> None:
    """Start the head, print its address, and wait for SIGTERM. All its processes end with this one."""
    from cluster.connect import start_local  # loads Ray

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    configure()
    os.environ["RAY_GCS_SERVER_PORT"] = sys.argv[1]
    guard = start_local(include_dashboard=True, dashboard_host=LOOPBACK, dashboard_port=int(sys.argv[2]))
    print(f"Ray's head answers at {LOOPBACK}:{sys.argv[1]}", flush=True)
    signal.pause()
    assert guard


if __name__ == "__main__":
    ray_head()
