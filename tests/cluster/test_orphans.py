"""What a process starts ends with it, however it ends; what it sets free goes on."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import ray

import cluster.connect
from cluster.orphans import MARK, Guard, agents, marked, unmarked

PROGRAM = """
import os, signal, subprocess, sys, time
from cluster.orphans import ending_with_this_process, unmarked

SLEEP = [sys.executable, "-c", "import time; time.sleep(300)"]
STUBBORN = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"]
NESTED = [sys.executable, "-c", "from cluster.orphans import *\\nwith ending_with_this_process():\\n"
          f"  print(subprocess.Popen({SLEEP}).pid, flush=True)\\n  time.sleep(300)"]
with ending_with_this_process():
    started = [
        subprocess.Popen(SLEEP),
        subprocess.Popen(STUBBORN, start_new_session=True),
        nested := subprocess.Popen(NESTED, stdout=subprocess.PIPE, text=True),
    ]
    inner = nested.stdout.readline().strip()
    free = subprocess.Popen(SLEEP, env=unmarked(os.environ), start_new_session=True)
print(*(p.pid for p in started), inner, free.pid, flush=True)
sys.stdin.readline()
os._exit(3) if sys.argv[1] == "_exit" else None
"""


@pytest.mark.parametrize("way", ["SIGKILL", "SIGTERM", "_exit", "returns"])
def test_what_was_started_ends_with_its_process(way):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    *family, free = [psutil.Process(int(number)) for number in process.stdout.readline().split()]
    try:
        assert len(family) == 4 and all(p.is_running() for p in family)
        if way.startswith("SIG"):
            process.send_signal(getattr(signal, way))
        process.stdin.close()  # so it goes on to its end
        process.wait(60)
        assert not psutil.wait_procs(family, timeout=30)[1]
        assert free.is_running()
    finally:
        for left in (*family, free):
            if left.is_running():
                left.kill()


def test_a_released_guard_stops_nothing_and_one_that_is_gone_stops_its_own_alone():
    mine, other, released = Guard(), Guard(), Guard()
    released.release()
    sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
    started = [subprocess.Popen(sleep, env={**os.environ, MARK: guard.id}) for guard in (mine, other, released)]
    try:
        until(lambda: marked(mine.id) and marked(other.id))
        assert [p.pid for p in marked(mine.id)] == [started[0].pid]
        assert released.process.wait(30) == 0
        mine.process.stdin.close()  # as when it is no longer referred to
        mine.process.wait(30)
        assert [process.poll() is None for process in started] == [False, True, True]
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_the_guard_of_a_ray_that_ended_leaves_the_next_one_alone():
    cluster.connect.connect()
    first = cluster.connect._keeper.guard.process
    try:
        cluster.connect.disconnect()
        cluster.connect.connect()
        session = ray.get_runtime_context().get_session_name()
        until(lambda: agents(session))
        before = {p.pid for p in agents(session)}
        first.wait(60)
        assert before <= {p.pid for p in agents(session)}
        assert list(cluster.connect.spread(unmarked, [({MARK: "1", "A": "2"},)])) == [{"A": "2"}]
    finally:
        cluster.connect.disconnect()


def until(done) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
