"""MLflow's server and a local Ray as services of `gpt2 up`, each on loopback."""

from __future__ import annotations

import sys

from cluster.credentials import RAY_TOKEN, secret_file
from cluster.home import home
from cluster.services import Service, http_answers, port_answers

LOOPBACK = "127.0.0.1"


def mlflow(port: int) -> Service:
    """The tracking server and registry over the home's own SQLite file. Artifacts lie in the home, at addresses that
    clients on this machine read with or without the server; it hands them to other clients too."""
    folder = home() / "mlflow"
    folder.mkdir(exist_ok=True)
    artifacts = (folder / "artifacts").as_uri()
    origins = f"http://{LOOPBACK}:{port},http://localhost:{port}"
    options = {
        "host": LOOPBACK,
        "port": str(port),
        "workers": "1",
        "backend-store-uri": f"sqlite:///{folder / 'mlflow.db'}",
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
        ports={"--mlflow-port": port},
    )


def ray(port: int, dashboard_port: int) -> Service:
    """A head of this machine's cores, which only those who hold the home's token may use."""
    token = secret_file(RAY_TOKEN)
    address = f"http://{LOOPBACK}:{dashboard_port}"
    return Service(
        "ray",
        "Ray",
        (sys.executable, "-m", "cluster.head", str(port), str(dashboard_port)),
        address,
        lambda: port_answers(LOOPBACK, port) and http_answers(f"{address}/api/version"),
        environment={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)},
        ports={"--ray-port": port, "--ray-dashboard-port": dashboard_port},
    )
