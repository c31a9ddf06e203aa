"""Local state in one folder; the doctor says what is wrong and what to do."""

import http.server
import os
import pickle
import re
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import pytest

from cluster import home, process_env
from cluster.services import doctor
from gpt2.store.artifact import Key
from tests.services import s3_server


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it where it was told another way
    return tmp_path / "home"


def test_clean_removes_the_home_and_nothing_else(elsewhere):
    home.home()
    for name in home.CONTENTS:
        (elsewhere / name).mkdir()
    (elsewhere.parent / "other").write_text("mine")
    assert home.clean() == elsewhere
    assert not elsewhere.exists()
    assert (elsewhere.parent / "other").exists()


def test_clean_refuses_a_folder_that_is_not_ours(elsewhere):
    home.home()
    (elsewhere / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"thesis\.txt.*gpt2 did not make"):
        home.clean()
    assert (elsewhere / "thesis.txt").exists()


@pytest.mark.parametrize("long_tmpdir", [False, True])
def test_ray_folder_is_short_enough_for_sockets(tmp_path, monkeypatch, long_tmpdir):
    if long_tmpdir:  # as batch systems give one
        monkeypatch.setattr(tempfile, "tempdir", None)
        (tmp_path / ("t" * 80)).mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / ("t" * 80)))
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    monkeypatch.setenv("GPT2_HOME", str(deep))
    folder = home.ray_folder()
    assert len(str(folder)) + home.RAY_SOCKET_SUFFIX <= 107
    assert folder.resolve() == deep / "ray"
    home.clean()
    assert not folder.is_symlink()


def test_given_addresses_are_respected(monkeypatch, elsewhere):
    assert home.tracking_uri() == f"sqlite:///{elsewhere}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5999")
    assert home.tracking_uri() == "http://127.0.0.1:5999"


def test_doctor_names_a_remedy_for_what_is_wrong(monkeypatch, elsewhere):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    results = {r.name: r for r in doctor.check()}
    for name in ("Prefect", "MLflow", "Ray"):
        assert results[name].state == "failed" and "127.0.0.1:9" in results[name].found
    assert all(r.remedy for r in results.values() if r.state != "ok")
    assert {"Python", "CPU", "memory", "disk", "GPU", "C++ compiler", "/dev/shm", "port 4200"} <= set(results)
    assert results["Python"].state == results["packages"].state == "ok"


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "[::1]:9", "ray://127.0.0.1:9", "nonsense", "http://127.0.0.1:8265"]
)
def test_where_no_head_listens_ray_is_not_waited_for(monkeypatch, tmp_path, address):
    from cluster import connect

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    begin = time.monotonic()
    with pytest.raises(ValueError, match=rf"RAY_ADDRESS={re.escape(address)}: .*; give RAY_ADDRESS as host:6379"):
        connect.start_or_attach()  # whatever this process is connected to already
    assert time.monotonic() - begin < 10


PROXIED = """
import os, urllib.request
from cluster.process_env import configure
configure()
import httpx, requests
address = os.environ["ADDRESS"]
print(urllib.request.urlopen(address).status, httpx.get(address).status_code, requests.get(address).status_code)
print(os.environ["no_proxy"] == os.environ["NO_PROXY"], os.environ["NO_PROXY"])
"""


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_loopback_never_goes_through_a_proxy(tmp_path, variable):
    """The proxy answers nothing; what else the user excepts stays so."""
    with socket.socket() as proxy, http.server.HTTPServer(
        ("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler
    ) as server:  # fmt: skip
        proxy.bind(("127.0.0.1", 0))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        environment = {
            "GPT2_HOME": str(tmp_path), variable: f"http://127.0.0.1:{proxy.getsockname()[1]}",
            "NO_PROXY": "inside.example", "ADDRESS": f"http://127.0.0.1:{server.server_port}/",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", PROXIED], env={**kept, **environment}, capture_output=True, text=True, timeout=60
        )
        server.shutdown()
    assert done.stdout.split() == ["200"] * 3 + ["True", "inside.example,127.0.0.1,localhost,::1"], done.stderr


def test_without_a_proxy_nothing_is_set(monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    process_env.keep_loopback_direct()
    assert "NO_PROXY" not in os.environ and "no_proxy" not in os.environ


def test_doctor_finds_a_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        result = doctor.port(number, "MLflow", "--mlflow-port")()
    assert result.state == "warning" and "--mlflow-port" in result.remedy


def test_a_store_that_is_sent_to_another_machine_is_that_machine_s_own(tmp_path, monkeypatch):
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GPT2_STORE", "s3://bucket/team")
        monkeypatch.setenv("GPT2_HOME", str(tmp_path / "here"))
        place = home.store()
        made = place.make(Key("thing"), lambda out: (out / "a.txt").write_text("a") and {})
        (tmp_path / "other.txt").write_text("b")
        names = [f"{made.name}/a.txt", place.hand(tmp_path / "other.txt")]
        program = """
            import pickle, sys
            store, names = pickle.loads(sys.stdin.buffer.read())
            print(store.root.parents[1].name, *(store.locate(name).read_text() for name in names))
        """
        there = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            input=pickle.dumps((place, names)),
            env={**os.environ, "GPT2_HOME": str(tmp_path / "there")},
            stdout=subprocess.PIPE,
            check=True,
        )
        assert there.stdout.decode().split() == ["there", "a", "b"]
        result = {r.name: r for r in [doctor.artifacts()]}
        assert result["store"].state == "ok" and "s3://bucket/team" in result["store"].found
        monkeypatch.setenv("GPT2_STORE", "s3://absent/team")
        assert doctor.artifacts().remedy == "make it, or correct the address"
