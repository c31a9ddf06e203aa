"""A checkpoint is whole or absent, whatever is killed, full or damaged; what is kept is what should be."""

import builtins
import errno
import itertools
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cluster.checkpoints.checkpointer
import gpt2.store.artifact
from cluster.checkpoints.checkpointer import Checkpointer, retained
from cluster.checkpoints.files import discard, verify
from gpt2.training.guard import GaveUp
from gpt2.training.journal import EVENTS, Events, read_journal

RANKS = 4
HEADER = {"job": {"data": "a", "train": {"steps": 10, "seed": 0, "optimizer": {"learning_rate": 1e-3}}}}


pytestmark = pytest.mark.usefixtures("group")


class Shares:
    """An engine whose state is a number; rank r writes r times that number, in several writes."""

    def __init__(self, rank: int, value: int = 0, world_size: int = RANKS):
        self.rank, self.world_size, self.value = rank, world_size, value

    def snapshot(self):
        data = f"{self.value:06d}" * 50 + str(self.rank)

        def write(directory: Path) -> Path:
            path = directory / f"state-{self.rank:05d}-of-{self.world_size:05d}.safetensors"
            with gpt2.store.artifact.open(path, "w") as stream:  # where failpoints are set
                for start in range(0, len(data), 20):
                    stream.write(data[start : start + 20])
                    stream.flush()
            return path

        return write

    def load(self, directory: Path):
        texts = [p.read_text() for p in sorted(directory.glob("state-*"))]
        assert len(texts) == RANKS
        values = {text[:6] for text in texts}
        assert len(values) == 1, "a mixture"
        assert [t[300:] for t in texts] == [str(r) for r in range(RANKS)]
        self.value = int(values.pop())


def checkpoints(folder: Path, keep: int = 2, header=HEADER, **options) -> Checkpointer:
    folder.mkdir(exist_ok=True)
    return Checkpointer(folder / "_checkpoints", keep, None, header, Events(folder), **options)


def save(folder: Path, step: int, keep: int = 2, loss: float | None = None) -> None:
    """Save from all ranks, each on its thread as in its process; the first error is raised."""
    parts = [checkpoints(folder, keep) for _ in range(RANKS)]
    for rank, part in enumerate(parts):
        part.attempt = "attempt"
        part.save(Shares(rank, step), step, {"norms": [step / 3]}, loss)
    errors = []
    for part in parts:
        try:
            part.wait()
        except OSError as error:
            errors.append(error)
    if errors:
        raise next((e for e in errors if e.errno != errno.ENOENT), errors[0])


def load(folder: Path) -> tuple[int, int, dict]:
    """(step, value, state) as a new attempt finds them."""
    engine = Shares(0, -1)
    step, state = checkpoints(folder).load(engine)
    return step, engine.value, state


def litter(folder: Path) -> list[str]:
    return [p.name for p in (folder / "_checkpoints").iterdir() if not p.name.startswith("step-")]


def messages(folder: Path) -> list[str]:
    return [e["reason"] for e in read_journal(folder / EVENTS) if e["event"] == "damaged checkpoint"]


def test_round_trip_and_retention(tmp_path):
    assert load(tmp_path) == (0, -1, {})
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: None}
    for step, loss in losses.items():
        save(tmp_path, step, loss=loss)
    assert load(tmp_path) == (5, 5, {"norms": [5 / 3]})
    assert sorted(p.name for p in (tmp_path / "_checkpoints").iterdir()) == [
        f"step-{s:08d}" for s in (2, 4, 5)
    ]  # the best, and the last two
    told = [e for e in read_journal(tmp_path / EVENTS) if e["event"] == "checkpoint"]
    assert [e["step"] for e in told] == [1, 2, 3, 4, 5] and all(e["bytes"] == RANKS * 301 for e in told)


@given(
    st.dictionaries(st.integers(1, 500), st.none() | st.floats(0, 10), min_size=1),
    st.integers(1, 5),
    st.none() | st.integers(1, 50),
)
def test_retention_never_drops_the_last_the_best_or_the_archived(steps, keep, archive):
    kept = retained(steps, keep, archive)
    known = [s for s in steps if steps[s] is not None]
    must = set(sorted(steps)[-keep:]) | {s for s in steps if archive and s % archive == 0}
    assert must <= kept <= set(steps)
    if known:
        assert min(steps[s] for s in known) in [steps[s] for s in kept]
    assert len(kept - must) <= 1


class Failpoints:
    """Counts what a save asks of the file system, and at the n-th does something else instead."""

    def __init__(self, at: int, act):
        self.at, self.act, self.count, self.lock = at, act, itertools.count(1), threading.Lock()
        self.seen: list[str] = []

    def hit(self, what: str) -> None:
        with self.lock:
            self.seen.append(what)
            number = next(self.count)
        if number == self.at:
            self.act()

    def install(self) -> None:
        """For the rest of this process."""
        fsync, failpoints = os.fsync, self

        def counted_fsync(handle):
            failpoints.hit("fsync")
            fsync(handle)

        os.fsync = counted_fsync

        class Counted:
            def __init__(self, *arguments, **options):
                self.stream = builtins.open(*arguments, **options)  # noqa: SIM115 - closed at exit

            def __enter__(self):
                return self

            def __exit__(self, *exception):
                self.stream.close()

            def __getattr__(self, name):
                return getattr(self.stream, name)

            def write(self, data):
                failpoints.hit("write")
                self.stream.write(data)

        gpt2.store.artifact.open = Counted
        kinds = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}

        def audit(event, arguments):
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
            if (event in kinds or writes) and "_checkpoints" in str(arguments[0]):
                failpoints.hit(event)

        sys.addaudithook(audit)


gpt2.store.artifact.open = builtins.open  # so that the writers of tests and of the product share one


def in_child(action) -> int:
    """The exit status of a forked process that runs `action`: 0, or what it exits with."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count_failpoints(folder: Path) -> int:
    """How many there are in one save with something to retire."""
    save(folder, 1)
    save(folder, 2)
    report = folder / "count"

    def action():
        failpoints = Failpoints(0, None)
        failpoints.install()
        save(folder, 3)
        report.write_text(str(len(failpoints.seen)))

    assert in_child(action) == 0
    return int(report.read_text())


def test_a_kill_at_any_write_fsync_or_rename_leaves_the_old_or_the_new(tmp_path):
    total = count_failpoints(tmp_path / "count")
    assert total >= 100
    outcomes = set()
    for at in range(1, total + 1):
        folder = tmp_path / str(at)
        save(folder, 1)
        save(folder, 2)

        def action(at=at, folder=folder):
            Failpoints(at, lambda: os._exit(9)).install()
            save(folder, 3)

        assert in_child(action) in (0, 9)
        step, value, state = load(folder)
        assert step == value and state == {"norms": [step / 3]} and step in (2, 3), at
        assert not litter(folder) and not messages(folder), at
        outcomes.add(step)
        save(folder, 4)
        assert load(folder)[:2] == (4, 4)
    assert outcomes == {2, 3}


def test_a_full_disk_at_any_write_leaves_the_old_and_says_so(tmp_path):
    total = count_failpoints(tmp_path / "count")
    full = 0

    def no_space():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for at in range(1, total + 1, 4):
        folder = tmp_path / str(at)
        save(folder, 1)
        save(folder, 2)

        def action(at=at, folder=folder):
            cluster.checkpoints.checkpointer.PATIENCE = 1.0  # a rank that fails ends its process and the others
            Failpoints(at, no_space).install()
            try:
                save(folder, 3)
            except OSError as error:
                assert "step 3 could not be written" in str(error) and "bytes free" in str(error), error
                assert str(folder) in str(error)
                os._exit(9)

        status = in_child(action)
        assert status in (0, 9), at
        full += status == 9
        step, value, _ = load(folder)
        assert step == value and step in (2, 3), at
        assert not litter(folder), at
    assert full > total / 8


def test_a_quota_stops_the_real_writer(tmp_path):
    """safetensors' own writer against the kernel's limit on a file's size."""
    from safetensors.torch import save_file

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        part = checkpoints(tmp_path, background=False)
        part.attempt = "a"
        engine = Shares(0, world_size=1)
        from safetensors import SafetensorError

        def write(directory):
            try:
                save_file({"x": torch.zeros(10_000)}, directory / "state.safetensors")
            except SafetensorError as error:
                raise OSError(errno.EIO, str(error)) from error

        engine.snapshot = lambda: write
        try:
            part.save(engine, 1, {}, None)
        except OSError as error:
            assert "could not be written" in str(error)
            os._exit(9)

    assert in_child(limited) == 9
    assert load(tmp_path) == (0, -1, {}) and not litter(tmp_path)


DAMAGES = {
    "flip": lambda p: p.write_bytes(bytes([*p.read_bytes()[:20], p.read_bytes()[20] ^ 1, *p.read_bytes()[21:]])),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-7]),
    "empty": lambda p: p.write_bytes(b""),
    "delete": lambda p: p.unlink(),
    "directory": lambda p: (p.unlink(), p.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_found_and_the_one_before_is_taken(tmp_path, damage):
    for index in range(RANKS + 1):
        folder = tmp_path / str(index)
        for step in (1, 2, 3):
            save(folder, step, keep=3)
        files = sorted((folder / "_checkpoints/step-00000003").iterdir())
        assert len(files) == RANKS + 1
        DAMAGES[damage](files[index])
        assert load(folder)[:2] == (2, 2)
        assert len(messages(folder)) == 1 and "step-00000003" in messages(folder)[0]


def test_every_byte_of_a_manifest_counts(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    manifest = tmp_path / "_checkpoints/step-00000002/manifest.json"
    whole = json.loads(manifest.read_text())
    whole["state"]["norms"] = [0.5]  # still a manifest, of another state
    manifest.write_text(json.dumps(whole))
    assert load(tmp_path)[:2] == (1, 1)


def test_a_file_that_may_not_be_read_is_damage(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)
    real = cluster.checkpoints.checkpointer.verify

    def verify_without_permission(path):  # the tests may run as a user whom no permission stops
        if path.name == "step-00000002":
            raise PermissionError(errno.EACCES, "Permission denied", str(path / "manifest.json"))
        return real(path)

    monkeypatch.setattr(cluster.checkpoints.checkpointer, "verify", verify_without_permission)
    assert load(tmp_path)[:2] == (1, 1)
    assert "Permission denied" in messages(tmp_path)[0]


def test_with_none_intact_it_stops_and_never_starts_over(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
        DAMAGES["cut"](tmp_path / f"_checkpoints/step-{step:08d}/state-00002-of-00004.safetensors")
    with pytest.raises(GaveUp, match=r"none of its 2 checkpoints is intact"):
        load(tmp_path)


def test_leftovers_of_dead_attempts_are_swept_never_merged(tmp_path):
    save(tmp_path, 1)
    for name in (".writing-00000002-dead", ".old-step-00000000-dead"):
        stale = tmp_path / "_checkpoints" / name
        stale.mkdir()
        (stale / "state-00000-of-00004.safetensors").write_text("999999")
        (stale / "seal-00000.json").write_text("{}")
    assert load(tmp_path)[:2] == (1, 1)
    assert not litter(tmp_path)


def test_another_job_is_refused_and_compatible_changes_are_told(tmp_path):
    save(tmp_path, 1)
    other = json.loads(json.dumps(HEADER))
    other["job"]["train"] |= {"steps": 20, "optimizer": {"learning_rate": 2e-3}}
    assert checkpoints(tmp_path, header=other).load(Shares(0))[0] == 1
    told = [e for e in read_journal(tmp_path / EVENTS) if e["event"] == "changed"]
    assert told[0]["job_train_steps"] == [10, 20] and told[0]["job_train_optimizer_learning_rate"] == [1e-3, 2e-3]
    other["job"]["data"] = "b"
    with pytest.raises(GaveUp, match=r"job.data was 'a' and is 'b'; set it back, or delete"):
        checkpoints(tmp_path, header=other).load(Shares(0))


def test_saving_goes_on_in_the_background(tmp_path):
    """`save` returns before anything is written; `wait`, and the next save, when all is."""
    release = threading.Event()
    engine = Shares(0, 1, world_size=1)
    write = engine.snapshot()

    def slowly(directory):
        release.wait(10)
        return write(directory)

    engine.snapshot = lambda: slowly
    part = checkpoints(tmp_path)
    part.attempt = "a"
    began = time.monotonic()
    part.save(engine, 1, {}, None)
    assert not list((tmp_path / "_checkpoints").glob("step-*")) and time.monotonic() - began < 5
    release.set()
    part.wait()
    assert verify(tmp_path / "_checkpoints/step-00000001")["step"] == 1


def test_discarding_leaves_no_half_under_the_name(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / "_checkpoints/step-00000001"
    discard(path)
    assert not path.exists() and not litter(tmp_path)
