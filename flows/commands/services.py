"""`gpt2 up`, `down` and `status`: all services of an operator and an analyst, started by one command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import httpx
from cyclopts import Parameter
from rich.markup import escape

from cluster.home import (
    MLFLOW_PASSWORD,
    PREFECT_LOGIN,
    RAY_TOKEN,
    USER,
    home,
    is_locked,
    last_state,
    prefect_login,
    secret_file,
)
from cluster.orphans import stop, unmarked
from cluster.services import databases, processes
from cluster.services.databases import Profile
from cluster.services.doctor import answers
from cluster.services.processes import (
    LOOPBACK,
    Running,
    Service,
    ServiceFailed,
    http_answers,
    mlflow,
    port_answers,
    ray,
)
from flows.commands.console import out
from flows.server import server, worker

START_SECONDS = 240


def up(
    *,
    detach: Annotated[bool, Parameter(negative="")] = False,
    profile: Profile = "sqlite",
    at_once: int | None = None,
    prefect_port: int = 4200,
    mlflow_port: int = 5000,
    ray_port: int = 6379,
    ray_dashboard_port: int = 8265,
) -> None:
    """Start Prefect with its UI and a worker, MLflow and Ray, all on this machine alone, and keep them running.

    Services that PREFECT_API_URL, MLFLOW_TRACKING_URI or RAY_ADDRESS name are used, not started. Ctrl-C or `gpt2 down`
    stops everything that this started and nothing else.

    Example: gpt2 up --detach

    Args:
        detach: return as soon as everything answers.
        profile: the databases of Prefect and MLflow: SQLite files in the home, or the PostgreSQL server that
            GPT2_POSTGRES_URL names.
        at_once: most runs of the UI and of schedules at the same time; default: the work pool's limit, at first 3.
        prefect_port: where Prefect's UI and API listen.
        mlflow_port: where MLflow listens.
        ray_port: where Ray's head listens.
        ray_dashboard_port: where Ray's dashboard listens.
    """
    limit = check_at_once(at_once, profile)
    if detach:
        values = {"profile": profile, "prefect-port": prefect_port, "mlflow-port": mlflow_port, "ray-port": ray_port}
        values |= {"ray-dashboard-port": ray_dashboard_port, **({"at-once": at_once} if at_once else {})}
        return in_background([word for name, value in values.items() for word in (f"--{name}", str(value))])
    with processes.only_one():
        if (left := last_state()) is not None and (count := stop(left)):
            out.print(f"Stopped {count} processes of an earlier `gpt2 up` that was killed.")
        run(choose(profile, prefect_port, mlflow_port, ray_port, ray_dashboard_port), at_once, limit)


def check_at_once(at_once: int | None, profile: Profile) -> int | None:
    """Return the most runs that the worker may start at the same time, None for any.

    Raises `ValueError` for more runs than the databases can serve.
    """
    if at_once is not None and at_once < 1:
        raise ValueError(f"--at-once={at_once}: lets nothing run; give 1 or more")
    if profile == "sqlite" and (at_once or 0) > databases.SQLITE_RUNS:
        raise ValueError(
            f"--at-once={at_once}: is more than the {databases.SQLITE_RUNS} runs that were measured to work on SQLite; "
            f"lower it, or use --profile postgres"
        )
    return at_once or (databases.SQLITE_RUNS if profile == "sqlite" else None)


def run(choice: Choice, at_once: int | None, limit: int | None) -> None:
    """Start the services, watch them, and stop them at the end, also after an error or a signal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    chosen, environment, secrets = choice
    processes.check_ports(chosen, LOOPBACK)
    os.environ.pop(databases.ADDRESS, None)  # only the two servers need it, not runs and Ray
    group = Running(environment, secrets)
    try:
        with contextlib.suppress(Leave):
            out.print(f"Starting {', '.join(s.title for s in chosen) or 'the worker'} ...")
            for service in chosen:
                group.start(service)
            for variables in environment.values():
                os.environ.update(variables)
            for files in secrets.values():
                os.environ.update({variable: secret_file(name).read_text() for variable, name in files.items()})
            register = importing(at_once)
            for service in chosen:
                group.wait(service.name, START_SECONDS)
            deployments = register()
            group.start(worker(limit))
            group.wait("worker", START_SECONDS)
            group.write(ready=True)
            print_addresses(deployments)
            while True:
                time.sleep(1)
                group.mend(lambda message: out.print(f"{time.strftime('%H:%M:%S')} {message}"))
    except ServiceFailed as error:
        out.print("[red]failed:[/]", end=" ")
        out.print(str(error), markup=False)
        sys.exit(1)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # further signals must not interrupt stopping
        out.print("Stopping: runs first, so that they can save ...")
        group.stop()
        out.print("Stopped.")


class Leave(BaseException):
    """Raised by the handler of the signals that stop `up`."""


def leave(number: int, frame: Any) -> None:
    raise Leave


Choice = tuple[list[Service], dict[str, dict[str, str]], dict[str, dict[str, str]]]


def choose(profile: Profile, prefect_port: int, mlflow_port: int, ray_port: int, ray_dashboard_port: int) -> Choice:
    """Return the services to start, the environment variables that lead to each, and the files of its secrets.

    Variables and files are by the variable that would name another service. Raises `ValueError` if a named service does
    not answer.
    """
    if profile == "postgres":
        databases.check()
    chosen: list[Service] = []
    environment: dict[str, dict[str, str]] = {}
    secrets: dict[str, dict[str, str]] = {}
    if address := os.environ.get("RAY_ADDRESS"):
        host, _, number = address.rpartition(":")
        require("RAY_ADDRESS", address, number.isdigit() and port_answers(host, int(number)))
    else:
        chosen.append(ray(ray_port, ray_dashboard_port))
        environment["RAY_ADDRESS"] = {"RAY_ADDRESS": f"{LOOPBACK}:{ray_port}", **chosen[-1].environment}
    if address := os.environ.get("PREFECT_API_URL"):
        require("PREFECT_API_URL", address, http_answers(f"{address.rstrip('/')}/health"))
    else:
        chosen.append(server(prefect_port, profile))
        api, ui = f"{chosen[-1].address}/api", chosen[-1].address
        environment["PREFECT_API_URL"] = {"PREFECT_API_URL": api, "PREFECT_UI_URL": ui}
        secrets["PREFECT_API_URL"] = {"PREFECT_API_AUTH_STRING": PREFECT_LOGIN}
    if address := os.environ.get("MLFLOW_TRACKING_URI"):
        require("MLFLOW_TRACKING_URI", address, not address.startswith("http") or http_answers(f"{address}/health"))
    else:
        chosen.append(mlflow(mlflow_port, profile))
        login = {"MLFLOW_TRACKING_USERNAME": USER}
        environment["MLFLOW_TRACKING_URI"] = {"MLFLOW_TRACKING_URI": chosen[-1].address, **login}
        secrets["MLFLOW_TRACKING_URI"] = {"MLFLOW_TRACKING_PASSWORD": MLFLOW_PASSWORD}
    return chosen, environment, secrets


def require(variable: str, address: str, good: bool) -> None:
    if not good:
        raise ValueError(
            f"{variable}={address}: does not answer; start this service, or unset the variable to have one started"
        )


def importing(at_once: int | None) -> Any:
    """Begin to import the flows, which takes seconds, while the servers start; return the function that registers
    them."""
    loaded: list[Any] = []

    def load() -> None:
        from flows.server import register

        loaded.append(register)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()

    def register() -> list[str]:
        thread.join()
        if not loaded:
            raise ServiceFailed("the flows could not be loaded; see the error above")
        try:
            return loaded[0](at_once)
        except httpx.HTTPError as error:
            raise ServiceFailed(
                f"the deployments could not be registered with {os.environ['PREFECT_API_URL']}: {error}; "
                f"if it asks for a login, set PREFECT_API_AUTH_STRING"
            ) from None

    return register


def print_addresses(deployments: Sequence[str]) -> None:
    """Print the addresses, the first steps, and how to stop."""
    ui = os.environ.get("PREFECT_UI_URL") or os.environ["PREFECT_API_URL"].removesuffix("/api")
    state = last_state() or {"services": [], "secrets": {}, "environment": {}}
    addresses = {s["name"]: s["address"] for s in state["services"]}
    out.print(f"\n  [bold]Prefect[/]  {ui}    runs, forms, schedules")
    out.print(f"  [bold]MLflow[/]   {addresses.get('mlflow', os.environ['MLFLOW_TRACKING_URI'])}    figures and models")
    out.print(f"  [bold]Ray[/]      {addresses.get('ray', os.environ['RAY_ADDRESS'])}    the cluster\n")
    out.print(f"First: {ui}/deployments, press the three dots at `pipeline`, then Custom run; or `gpt2 run` here.")
    if state["secrets"]:
        out.print("Each page asks a browser once for a login or a token: see `gpt2 status --login`.")
    out.print(f"{len(deployments)} deployments are registered. Logs are in {processes.logs()}.")
    out.print("Stop with Ctrl-C here, or `gpt2 down` anywhere with the same GPT2_HOME.\n")


def in_background(options: list[str]) -> None:
    """Run `up` as its own process; return when it is ready, exit if it fails."""
    if is_locked():
        with processes.only_one():  # raises the error
            return
    log = processes.logs() / "up.log"
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "up", *options],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=unmarked(os.environ),  # it outlives this command
            start_new_session=True,
        )
    with interrupting(process):
        processes.follow(sys.stdout, log, process, ready)
        if process.poll() is not None:
            sys.exit(process.returncode or 1)


@contextlib.contextmanager
def interrupting(process: subprocess.Popen) -> Iterator[None]:
    """Stop the process if the block is interrupted, for example by Ctrl-C."""
    try:
        yield
    except BaseException:
        process.terminate()
        process.wait()
        raise


def ready() -> bool:
    """Return whether the `up` of this home is alive, and all its services answer."""
    state = last_state()
    return state is not None and state["ready"] and is_locked()


def down() -> None:
    """Stop what `gpt2 up` started: first the runs, which save and can resume, then the services.

    Example: gpt2 down
    """
    state = last_state()
    if state is None:
        out.print(f"Nothing is up for {home()}.")
        return
    if is_locked():
        with contextlib.suppress(ProcessLookupError):
            os.kill(state["pid"], signal.SIGTERM)
        deadline = time.monotonic() + 90
        while is_locked() and time.monotonic() < deadline:
            time.sleep(0.2)
    if (state := last_state()) is not None:  # it was killed or hangs
        stop(state)
    out.print("Stopped.")


def status(*, login: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Show the services of `gpt2 up`: address, whether each answers, log.

    Example: gpt2 status --login

    Args:
        login: show the logins of Prefect's and MLflow's pages and the token of Ray's dashboard too.
    """
    state = last_state()
    if state is None or not is_locked():
        if state is not None:
            out.print("`gpt2 up` was killed; `gpt2 down` stops its remaining processes.")
            sys.exit(1)
        out.print(f"Nothing is up for {home()}; `gpt2 up` starts everything.")
        sys.exit(3)
    bad = False
    for service in state["services"]:
        alive = answers(service)
        bad |= not alive
        shown = "[green]answers[/]" if alive else "[red]does not answer[/]"
        out.print(f"{service['title']} {shown}: {escape(service['address'])}, log {escape(service['log'])}")
    if not state["ready"]:
        out.print("It is still starting, or restarting a service.")
    if login:
        out.print(f"Prefect's page:  {prefect_login()}")
        out.print(f"MLflow's page:   {USER}, password {secret_file(MLFLOW_PASSWORD).read_text()}")
        out.print(f"Ray's dashboard: {secret_file(RAY_TOKEN).read_text()}")
    if bad:
        sys.exit(1)
