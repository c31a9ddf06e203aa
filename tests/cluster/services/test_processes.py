"""Services as processes: started, watched, and stopped with all that they started and nothing else."""

import socket
import subprocess
import sys

import psutil
import pytest

from cluster.home import clean, is_locked, last_state, running, secret_file
from cluster.orphans import marked, stop
from cluster.process_env import configure
from cluster.services import processes
from cluster.services.processes import Running, Service, ServiceFailed, only_one

SERVE = """
import subprocess, sys, socket, time
if sys.argv[2] == "parent":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "toy" + "-work"], start_new_session=True)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(300)
"""


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    return configure()


def service(kind: str = "parent") -> Service:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = (sys.executable, "-c", SERVE, str(port), kind)
    answers = lambda: processes.port_answers("127.0.0.1", port)  # noqa: E731
    return Service(
        "toy", "Toy", command, f"http://127.0.0.1:{port}", answers, ports={"--toy": port}, works=("toy-work",)
    )


def test_all_that_was_started_is_stopped_and_nothing_else(own_home):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "toy-work"])
    group = Running({}, {})
    group.start(service())
    group.wait("toy", 30)
    group.write(ready=True)
    assert len(marked(group.id)) == 2 and len(marked(group.id, ("toy-work",))) == 1
    psutil.Process(group.processes["toy"].pid).kill()  # its child is an orphan now
    group.processes["toy"].wait()
    assert stop(last_state()) == 1
    assert not marked(group.id) and last_state() is None
    assert other.poll() is None
    other.kill()
    other.wait()


def test_what_ends_is_started_again_and_given_up_in_the_end(own_home):
    group, said = Running({}, {}), []
    group.start(service("alone"))
    group.wait("toy", 30)
    with pytest.raises(ServiceFailed, match="for the 4th time"):
        for _ in range(processes.RESTARTS + 1):
            group.processes["toy"].kill()
            group.processes["toy"].wait()
            group.mend(said.append)
    group.stop()
    assert sum("starting it again" in line for line in said) == processes.RESTARTS


def test_a_service_that_does_not_start_shows_its_log(own_home):
    group = Running({}, {})
    group.start(Service("toy", "Toy", (sys.executable, "-c", "raise SystemExit('no such table')"), "", lambda: False))
    with pytest.raises(ServiceFailed, match=r"(?s)ended while it started.*no such table"):
        group.wait("toy", 30)
    group.stop()


def test_a_used_port_is_named_with_the_option(own_home):
    wanted = service()
    with (
        socket.create_server(("127.0.0.1", wanted.ports["--toy"])),
        pytest.raises(ValueError, match=r"--toy=\d+: Toy can't use this port.*choose another with --toy"),
    ):
        processes.check_ports([wanted], "127.0.0.1")


def test_one_up_a_home(own_home):
    assert not is_locked() and running() is None
    with only_one():
        assert is_locked()
        with pytest.raises(ValueError, match="is running already"), only_one():
            pass
        with pytest.raises(ValueError, match="gpt2 down"):
            clean()
    assert not is_locked()
    clean()


def test_commands_follow_a_running_up_where_the_environment_names_no_other(own_home, monkeypatch):
    secret_file("toy-login", "gpt2:")
    environment = {
        "MLFLOW_TRACKING_URI": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"},
        "PREFECT_API_URL": {"PREFECT_API_URL": "http://127.0.0.1:2/api"},
    }
    group = Running(environment, {"PREFECT_API_URL": {"PREFECT_API_AUTH_STRING": "toy-login"}})
    names = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING")

    def found() -> list[str | None]:
        with monkeypatch.context() as patch:
            for name in names:
                patch.delenv(name, raising=False)
            patch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
            configure()
            import os

            return [os.environ.pop(name, None) for name in names]

    group.write(ready=True)
    assert found()[1:] == [None, None]  # it is not running
    with only_one():
        mlflow, prefect, login = found()
    assert (mlflow, prefect) == ("sqlite:///mine.db", "http://127.0.0.1:2/api")
    assert login is not None and login.startswith("gpt2:") and len(login) == 69


def test_secrets_are_their_owners(own_home):
    path = secret_file("toy-token")
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert secret_file("toy-token").read_text() == path.read_text() and len(path.read_text()) == 64
    assert own_home.stat().st_mode & 0o777 == 0o700
