"""A loop without end, in Python or with the interpreter's lock held, ends the process and leaves its stacks."""

import subprocess
import sys
import time

import pytest

from gpt2.training.journal import EVENTS, Events, read_journal

SCRIPT = """
import sys, time
from pathlib import Path
from cluster.training.stopping import Watchdog
from gpt2.training.journal import Events
import cluster.training.stopping
cluster.training.stopping.GRACE = 1.0
folder = Path(sys.argv[1])
dog = Watchdog(1.0, folder / "stacks", 3, Events(folder))
dog.start()
for _ in range(5):
    dog.alive()
    time.sleep(float(sys.argv[3]))
def endless():
    if sys.argv[2] == "python":
        while True:
            pass
    if sys.argv[2] == "locked":
        return sum(range(10**13))
endless()
"""


@pytest.mark.parametrize("kind", ["python", "locked"])
def test_an_endless_loop_ends_the_process_and_leaves_its_stacks(tmp_path, kind):
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), kind, "0.01"], timeout=60, check=False)
    assert done.returncode == 1 and time.monotonic() - began < 30
    assert "in endless" in (tmp_path / "stacks/rank-00003.txt").read_text()
    if kind == "python":
        (told,) = read_journal(tmp_path / EVENTS)
        assert told["event"] == "hang" and told["rank"] == 3 and told["seconds"] >= 1


def test_a_slow_run_is_no_hang(tmp_path):
    """Gaps above the allowance, but none ten times as long as those before."""
    from cluster.training.stopping import Watchdog

    dog = Watchdog(0.1, tmp_path, 0, Events(tmp_path))
    dog.start()
    for _ in range(4):
        dog.alive()
        time.sleep(0.08)
    for _ in range(3):
        dog.alive()
        time.sleep(0.4)
    dog.end()
    dog.join()
    assert not (tmp_path / EVENTS).exists()
