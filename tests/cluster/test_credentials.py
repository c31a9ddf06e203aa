"""A local Ray asks for a token that no other user of the machine can read."""

import os
import subprocess
import sys

import pytest

from cluster.process_env import configure

RUN = """
from cluster.process_env import configure; configure()
from cluster.connect import connect, disconnect
import ray
connect()
print(ray.get(ray.remote(lambda: 7).remote()), ray.get_runtime_context().gcs_address, flush=True)
input()
disconnect()
"""
STRANGER = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False); print('in')"


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is taken back, whatever sets it meanwhile
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # another test may have imported it, which decides
    return tmp_path / "home"


def test_the_home_s_token_is_used_where_nothing_else_is_named(own_home, monkeypatch):
    configure()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    token = own_home / "services" / "ray-token"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(token) and token.stat().st_mode & 0o777 == 0o600
    for name, value in {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "10.0.0.1:6379"}.items():
        with monkeypatch.context() as patch:
            for variable in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
                patch.delenv(variable, raising=False)
            patch.setenv(name, value)
            configure()
            assert "RAY_AUTH_TOKEN_PATH" not in os.environ


@pytest.mark.slow
def test_ray_starts_with_that_token_and_writes_no_other(own_home, tmp_path):
    (tmp_path / "user").mkdir()
    environment = {**os.environ, "HOME": str(tmp_path / "user"), "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", RUN]
    ray = subprocess.Popen(
        command, env=environment, cwd=tmp_path, umask=0o022, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        seven, address = ray.stdout.readline().split()
        assert seven == "7"
        for mode in ("disabled", "token"):
            stranger = subprocess.run(
                [sys.executable, "-c", STRANGER, address],
                env={**environment, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "guessed" * 8},
                capture_output=True,
                text=True,
                timeout=180,
                check=False,
            )
            assert stranger.returncode and "in" not in stranger.stdout.split()
    finally:
        ray.communicate("\n", timeout=60)
    token = own_home / "services" / "ray-token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "user" / ".ray" / "auth_token").exists()
