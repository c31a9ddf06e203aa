"""Local state in one folder; the doctor says what is wrong and what to do."""

import pytest

from cluster import home
from cluster.services import doctor


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


def test_ray_folder_is_short_enough_for_sockets(tmp_path, monkeypatch):
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


def test_doctor_finds_a_port_in_use():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        result = doctor.port(number, "MLflow", "--mlflow-port")()
    assert result.state == "warning" and "--mlflow-port" in result.remedy
