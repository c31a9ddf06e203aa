"""Against a real MLflow server, from processes that have only its address: pulls, promotions, the way back."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

pytestmark = pytest.mark.slow

PULLS = """
import os, sys
from pathlib import Path
from cluster.process_env import configure; configure()
import gpt2
from cluster.registry import download, promotion
from cluster.registry.versions import by_alias
from gpt2.store.model_files import RefusedModel
from tests.cluster.small import TEXTS, registered

folder, stored = map(Path, sys.argv[1:])
name = "gpt2-remote"
for seed in (0, 1):
    registered(name, folder / str(seed), seed=seed)
    promotion.promote(name, str(seed + 1), "a test", force=True)
model = gpt2.load(f"models:/{name}@champion")
assert model.address == f"models:/{name}/2" and len(model.predict(list(TEXTS))) == 2
assert int(promotion.rollback(name, "a test")[1].version) == 1
assert gpt2.load(f"models:/{name}@champion").address == f"models:/{name}/1"
one, two = sorted(stored.rglob("head.safetensors"), key=os.path.getmtime)
content = bytearray(two.read_bytes()); content[-1] ^= 1; two.write_bytes(content)
import shutil; shutil.rmtree(os.path.join(os.environ["GPT2_HOME"], "pulled"))
for breaking, reason in (
    (lambda: None, "was altered"),
    (lambda: os.truncate(two, 12), "has 12 bytes"),
    (lambda: two.unlink(), "is missing"),
    (lambda: (two.write_bytes(content), two.with_name("x.pkl").write_bytes(b"")), "x.pkl"),
):
    breaking()
    try:
        gpt2.load(f"models:/{name}/2")
    except RefusedModel as error:
        assert reason in str(error), error
    else:
        raise AssertionError(reason)
try:
    promotion.promote(name, "2")
except RefusedModel:
    print("refused")
"""

PROMOTIONS = """
import sys
from cluster.process_env import configure; configure()
from tests.cluster.promoters import rounds
if __name__ == "__main__":
    rounds(sys.argv[1], "gpt2-turns", 1, False, 5)
    codes = rounds(sys.argv[1], "gpt2-kills", 2, True, 6)
    print(codes.count(-9), "of", len(codes), "were killed")
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A server with a database and artifacts of its own; the environment of its clients, and where it keeps files."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination"]
    server = subprocess.Popen([*command, str(folder / "artifacts")], cwd=folder, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            break
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
    variables = {"GPT2_HOME": str(folder / "home"), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    yield {**os.environ, **variables}, folder
    server.terminate()
    server.wait(30)


def run(environment, folder, program, *words):
    (folder / "program.py").write_text(program)
    environment = {
        **environment,
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), environment.get("PYTHONPATH")])),
    }
    done = subprocess.run(
        [sys.executable, folder / "program.py", *map(str, words)],
        env=environment,
        text=True,
        capture_output=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_versions_of_a_server_are_verified(environment, tmp_path):
    variables, folder = environment
    assert run(variables, tmp_path, PULLS, tmp_path, folder / "artifacts").endswith("refused\n")


def test_eight_at_once_against_a_server(environment, tmp_path):
    variables, folder = environment
    assert "were killed" in run(variables, tmp_path, PROMOTIONS, f"sqlite:///{folder / 'mlflow.db'}")
