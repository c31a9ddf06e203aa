"""What the machine has around a command: named servers that are not there, and folders with our names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.connect import connect, disconnect, spread

ROOT = Path(__file__).parents[2]
GPT2 = (sys.executable, "-P", "-m", "flows.cli")  # as the installed command: without the folder that one stands in


def shadow(folder: Path) -> Path:
    """Put modules with our names into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "cluster.py").write_text("raise ImportError('this is not our cluster')\n")
    for name in ("gpt2", "flows"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise ImportError('this is not our {name}')\n")
    return folder


def call(*words: str, folder: Path, code: int, **variables: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_TRACKING", "RAY_A"))}
    environment = {**kept, "GPT2_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "COLUMNS": "200", **variables}
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=300
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("variable", "address", "said"),
    [
        ("RAY_ADDRESS", "127.0.0.1:9", "give RAY_ADDRESS as host:6379 of a running head, or unset it"),
        ("RAY_ADDRESS", "nonsense", "Ray at nonsense: not the address of a head"),
        ("PREFECT_API_URL", "http://127.0.0.1:9/api", "start Prefect, or unset PREFECT_API_URL to use the local one"),
        ("PREFECT_API_URL", "http://127.0.0.1:9/", "set PREFECT_API_URL=http://127.0.0.1:9/api"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9", "start MLflow, or unset MLFLOW_TRACKING_URI"),
    ],
)
def test_a_server_that_is_not_there_is_told_before_anything_waits_for_it(tmp_path, variable, address, said):
    for words in (("run", "--preset", "smoke"), ("import", "anything")):
        answer = call(*GPT2, *words, folder=tmp_path, code=2, **{variable: address})
        assert "refused:" in answer and (said in answer or words[0] == "import") and "Traceback" not in answer


def test_workers_find_our_modules_in_a_folder_with_the_same_names(tmp_path, monkeypatch):
    """A worker calls a function of `cluster/`, which it imports by name."""
    from cluster.home import fits_sockets

    monkeypatch.chdir(shadow(tmp_path / "mine"))
    disconnect()
    try:
        connect()
        assert list(spread(fits_sockets, [(Path("/tmp"),)])) == [True]
    finally:
        disconnect()


@pytest.mark.slow
def test_a_run_in_a_folder_with_our_names(tmp_path, small_changes):
    folder, items = shadow(tmp_path / "mine"), [w for change in small_changes for w in ("--set", change)]
    call(*GPT2, "run", "pretrain", "--preset", "smoke", *items, folder=folder, code=0)
    assert list(folder.glob("home/store/base/*/manifest.json"))


FAILING = """
from cluster.training.launch import TrainingFailed
from flows.cli import app, main
@app.command
def fail(ours: bool):
    raise TrainingFailed("training 'base' failed: [its reason]") if ours else RuntimeError("a fault")
main()
"""


def test_an_error_of_ours_is_one_line_and_a_fault_shows_where_it_is():
    failed, fault = (
        subprocess.run([sys.executable, "-c", FAILING, "fail", given], capture_output=True, text=True, check=False)
        for given in ("True", "False")
    )
    assert (failed.returncode, failed.stderr) == (1, "failed: training 'base' failed: [its reason]\n")
    assert fault.returncode == 1 and "Traceback" in fault.stderr and "a fault" in fault.stderr


def test_no_network_is_told_before_anything_starts(tmp_path):
    index = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_INDEX": "", "PIP_FIND_LINKS": ""}
    said = call(*GPT2, "run", "--preset", "smoke", folder=tmp_path, code=2, **index)
    assert "sample 'reviews': pip could not download" in said and "connect to a package index" in said
    assert not list(tmp_path.glob("home/prefect/*.db")) and "Traceback" not in said
