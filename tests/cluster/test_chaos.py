"""Trainings whose processes are killed, stopped and asked to leave, at random moments, on a real Ray."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.config import ClusterConfig
from gpt2.training.cost import account
from gpt2.training.journal import EVENTS, JOURNAL, read_journal
from tests.cluster.training.test_launch import inputs, job, losses

__all__ = ["inputs"]

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

WORKER, HEAD = "RayTrainWorker", ("gcs_server", "raylet/raylet")


class Drive:
    """A training in a process of its own, started again by `finish` as a person would."""

    def __init__(self, inputs: Path, folder: Path, stage: int = 2, workers: int = 2, hang: float = 40, **changes):
        folder.mkdir(parents=True)
        self.output = folder / "out"
        defaults = {"steps": 40, "epochs": 5, "batch_size": 32, "eval_every": 1, "eval_samples": 64}
        work = job(inputs, self.output, **{**defaults, **changes})
        cluster = ClusterConfig(
            num_workers=workers, cpus_per_worker=0.5, zero_stage=stage, max_failures=50, hang_seconds=hang
        )
        (folder / "job.json").write_text(work.model_dump_json())
        (folder / "cluster.json").write_text(cluster.model_dump_json())
        self.command = [sys.executable, "-m", "tests.cluster.drive", str(folder / "job.json")]
        self.command.append(str(folder / "cluster.json"))
        self.log = folder / "log"
        self.starts = 0
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.starts += 1
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def family(self) -> list[psutil.Process]:
        assert self.process is not None
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def named(self, name: str) -> list[psutil.Process]:
        found = []
        for process in self.family():
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    @property
    def saving(self) -> int:
        """The step that is being saved, or 0."""
        return max((int(p.name.split("-")[1]) for p in self.output.glob("_checkpoints/.writing-*")), default=0)

    @property
    def step(self) -> int:
        return max((r["step"] for r in read_journal(self.output / JOURNAL)), default=0)

    def until(self, reached, seconds: float = 180) -> None:
        limit = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < limit, self.log.read_text()[-3000:]
            time.sleep(0.02)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def finish(self, seconds: float = 400) -> None:
        """Wait for the end, starting a dead driver again, at most five times."""
        limit = time.monotonic() + seconds
        while True:
            assert self.process is not None
            code = self.process.wait(max(1, limit - time.monotonic()))
            if code == 0:
                return
            assert self.starts < 6, self.log.read_text()[-3000:]
            self.start()

    def events(self, kind: str) -> list[dict]:
        return [e for e in read_journal(self.output / EVENTS) if e["event"] == kind]

    def result(self) -> tuple[list[float], bytes]:
        return losses(read_journal(self.output / JOURNAL)), (self.output / "model/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    """Losses and weights of undisturbed runs, by ZeRO stage."""
    results = {}

    def get(stage: int):
        if stage not in results:
            drive = Drive(inputs, tmp_path_factory.mktemp("unbroken") / str(stage), stage)
            drive.start()
            drive.finish()
            results[stage] = drive.result()
        return results[stage]

    return get


def strike(drive: Drive, victims: str) -> None:
    """Kill, as kill -9 does."""
    if victims == "driver":
        assert drive.process is not None
        drive.process.kill()
        return
    found = [p for name in HEAD for p in drive.named(name)] if victims == "head" else drive.named(WORKER)
    for process in found[:1] if victims == "worker" else found:
        process.kill()


VICTIMS, MOMENTS = ("worker", "workers", "driver", "head"), ("step", "epoch", "save")
EPOCH = 19  # the next step ends the first pass over the 625 samples


def reach(drive: Drive, moment: str, choice: random.Random) -> None:
    """Wait for a random moment in a step, most of which is accumulation, in a save, or as an epoch ends."""
    at = EPOCH if moment == "epoch" else drive.step + choice.randint(4, 9)
    if moment == "save":
        drive.until(lambda: drive.saving >= at)
    else:
        drive.until(lambda: drive.step >= at)
        time.sleep(choice.random() * (0.05 if moment == "epoch" else 0.3))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("victims", VICTIMS)
def test_resume_is_bitwise_exact(inputs, tmp_path, unbroken, stage, victims):
    expected = unbroken(stage)
    choice = random.Random(f"{stage}-{victims}")
    # Workers outlive the head for some seconds: they should not be through by then.
    drive = Drive(inputs, tmp_path / "run", stage, eval_samples=600 if victims == "head" else 64)
    drive.start()
    moment = MOMENTS[(stage + VICTIMS.index(victims)) % 3]
    for each in MOMENTS if (stage, victims) == (2, "worker") else (moment,):
        reach(drive, each, choice)
        strike(drive, victims)
    drive.finish()
    got = drive.result()
    assert got[0] == expected[0] and got[1] == expected[1]
    begins = drive.events("begin")
    assert len(begins) > 1 and all(b["step"] > 0 for b in begins[1:])  # never from the start
    assert all(b["reached"] - b["step"] <= 2 * 3 for b in begins[1:])  # at most the interval, and a save under way


def test_thirty_kills_of_a_worker_need_nobody(inputs, tmp_path):
    """Each recovery is timed, and the table printed; a whole run of it is in BENCHMARKS.md."""
    choice = random.Random(0)
    drive = Drive(inputs, tmp_path / "run", steps=2400, batch_size=4, micro_batch_size=1, eval_every=400, epochs=100)
    drive.start()
    for kill in range(30):
        before = drive.step
        drive.until(lambda before=before: drive.step > before + 3 and len(drive.named(WORKER)) == 2)
        time.sleep(choice.random() * 2)
        choice.choice(drive.named(WORKER)).kill()
        drive.until(lambda kill=kill: len(drive.events("failure")) > kill and len(drive.events("begin")) > kill + 1)
    assert drive.running and drive.starts == 1
    drive.until(lambda: drive.step > drive.events("begin")[-1]["reached"])
    told = account(read_journal(drive.output / JOURNAL), read_journal(drive.output / EVENTS))
    assert len(told.restarts) == 30
    lost = sorted(r.seconds for r in told.restarts)
    parts = ("detect", "restart", "reload", "recompute")
    figures = {part: sorted(getattr(r, part) for r in told.restarts)[15] for part in parts}
    print(json.dumps({"p95": lost[28], "median": lost[15], **figures}))
    assert all(b["reached"] - b["step"] <= 2 * 3 for b in drive.events("begin")[1:])
    assert drive.process is not None
    drive.process.kill()


def test_a_stopped_worker_is_noticed_and_replaced(inputs, tmp_path, unbroken):
    drive = Drive(inputs, tmp_path / "run", hang=20)
    drive.start()
    drive.until(lambda: drive.step >= 8)
    drive.named(WORKER)[1].send_signal(signal.SIGSTOP)
    began = time.time()
    drive.until(lambda: drive.events("hang") or drive.events("failure"), 60)
    assert time.time() - began < 60
    drive.finish()
    assert drive.starts == 1 and drive.result() == unbroken(2)
    told = drive.events("hang")
    assert all(e["seconds"] >= 20 for e in told)


def test_a_slow_run_is_no_hang(inputs, tmp_path, unbroken):
    """A second of allowance, and both workers starved to a crawl: no alarm."""
    drive = Drive(inputs, tmp_path / "run", hang=3, steps=16, log_every=1)
    drive.start()
    drive.until(lambda: drive.step >= 4)
    for _ in range(10):
        for worker in drive.named(WORKER):
            worker.suspend()
        time.sleep(0.7)
        for worker in drive.named(WORKER):
            worker.resume()
        time.sleep(0.3)
    drive.finish()
    assert not drive.events("hang") and not drive.events("failure")


def test_sigterm_saves_at_the_next_step_and_leaves(inputs, tmp_path, unbroken):
    drive = Drive(inputs, tmp_path / "run", checkpoint_every=1000, archive_every=None)
    drive.start()
    drive.until(lambda: drive.step >= 10)
    assert drive.process is not None
    drive.process.terminate()
    assert drive.process.wait(60) == 128 + signal.SIGTERM
    (told,) = drive.events("preempted")
    assert drive.step - told["step"] <= 1 and not drive.events("failure")
    drive.start()
    drive.finish()
    assert drive.events("begin")[1]["step"] == told["step"]
    assert drive.result() == unbroken(2)


def test_a_killed_driver_leaves_no_orphan(inputs, tmp_path):
    drive = Drive(inputs, tmp_path / "run")
    drive.start()
    drive.until(lambda: drive.step >= 5)
    family = drive.family()
    assert len(family) > 5
    strike(drive, "driver")
    _, alive = psutil.wait_procs(family[1:], timeout=30)
    assert not alive, [p.cmdline() for p in alive]
    drive.start()
    drive.finish()
    assert os.path.exists(drive.output / "model/config.json")


def test_a_draining_node_is_left_in_time(inputs, tmp_path, unbroken, monkeypatch):
    """Ray drains the node of a worker, as a cloud does before it takes a machine back: saved, and on with another."""
    from ray.cluster_utils import Cluster

    expected = unbroken(2)[0]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
        drive = Drive(inputs, tmp_path / "run", workers=1, checkpoint_every=1000, eval_samples=600)
        drive.start()
        drive.until(lambda: drive.step >= 6)
        raylets = {n: psutil.Process(n.all_processes["raylet"][0].process.pid) for n in nodes}
        (home,) = [
            n for n, raylet in raylets.items() if any(WORKER in " ".join(c.cmdline()) for c in raylet.children())
        ]
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
        command += ["--node-id", home.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "taken back", "--deadline-remaining-seconds", "30"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        drive.until(lambda: len(drive.events("begin")) > 1)
        drive.finish()
    finally:
        cluster.shutdown()
    told = drive.events("preempted")
    assert told and drive.events("begin")[1]["step"] == told[0]["step"] and drive.starts == 1
    assert losses(read_journal(drive.output / JOURNAL)) == pytest.approx(expected, rel=1e-5)
