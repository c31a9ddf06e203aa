"""Copies of checkpoints on a real S3 server process: whole or absent there too, and enough to go on from."""

from pathlib import Path

import fsspec
import pytest

from cluster.checkpoints.checkpointer import Checkpointer
from cluster.checkpoints.files import Mirror
from gpt2.store.artifact import MANIFEST
from gpt2.training.guard import GaveUp
from gpt2.training.journal import EVENTS, Events, read_journal
from tests.cluster.checkpoints.test_checkpointer import HEADER, Shares

ONE = {"job": HEADER["job"]}
pytestmark = pytest.mark.usefixtures("group")


@pytest.fixture(scope="module")
def bucket(s3):
    """The address of a bucket on an S3 server on loopback."""
    return "s3://bucket"


class One(Shares):
    """One rank."""

    def __init__(self, value: int = 0):
        super().__init__(0, value, world_size=1)

    def load(self, directory: Path):
        (path,) = directory.glob("state-*")
        self.value = int(path.read_text()[:6])


def checkpoints(folder: Path, url: str) -> Checkpointer:
    folder.mkdir(exist_ok=True)
    events = Events(folder)
    return Checkpointer(folder / "_checkpoints", 2, None, ONE, events, mirror=Mirror(url, "run", events))


def save(folder: Path, url: str, *steps: int) -> Checkpointer:
    kept = checkpoints(folder, url)
    kept.load(One())
    for step in steps:
        kept.save(One(step), step, {}, None)
    kept.wait()
    return kept


def load(folder: Path, url: str) -> tuple[int, int]:
    engine = One(-1)
    return checkpoints(folder, url).load(engine)[0], engine.value


def test_a_lost_disk_goes_on_from_the_copy_and_retention_holds_there_too(bucket, tmp_path):
    url = f"{bucket}/lost"
    kept = save(tmp_path / "a", url, 1, 2, 3)
    assert kept.mirror is not None and kept.mirror.steps() == ["step-00000003", "step-00000002"]
    assert load(tmp_path / "b", url) == (3, 3)
    assert [p.name for p in (tmp_path / "b/_checkpoints").iterdir()] == ["step-00000003"]


def test_a_copy_without_its_manifest_does_not_exist_and_a_damaged_one_is_passed_over(bucket, tmp_path):
    url = f"{bucket}/damaged"
    save(tmp_path / "a", url, 1, 2)
    s3 = fsspec.filesystem("s3")
    (state,) = [p for p in s3.ls("bucket/damaged/run/step-00000002", detail=False) if "state" in p]
    s3.pipe_file(state, s3.cat_file(state)[:-1] + b"?")
    assert load(tmp_path / "b", url) == (1, 1)
    assert "is not what its manifest says" in read_journal(tmp_path / "b" / EVENTS)[0]["reason"]
    s3.rm_file(f"bucket/damaged/run/step-00000001/{MANIFEST}")
    assert load(tmp_path / "c", url) == (0, -1)


class Dies(Exception):
    pass


def test_a_copy_that_is_cut_short_anywhere_is_the_old_or_the_new(bucket, tmp_path):
    """The connection is lost at each call in turn: told, training goes on, and what is there is whole."""
    for at in range(1, 7):
        url = f"{bucket}/cut-{at}"
        save(tmp_path / f"a{at}", url, 1)
        kept = checkpoints(tmp_path / f"a{at}", url)
        kept.load(One())
        calls = iter(range(1, 100))
        real = kept.mirror.fs

        class Cut:
            def __getattr__(self, name, real=real, calls=calls, at=at):
                if next(calls) == at:
                    raise ConnectionError("lost")
                return getattr(real, name)

        kept.mirror.fs = Cut()
        kept.save(One(2), 2, {}, None)
        kept.wait()
        told = [e for e in read_journal(tmp_path / f"a{at}" / EVENTS) if e["event"] == "not mirrored"]
        assert len(told) == 1 and "ConnectionError: lost" in told[0]["reason"], at
        assert load(tmp_path / f"b{at}", url) in ((1, 1), (2, 2)), at


def test_a_store_that_is_away_stops_a_new_run_and_is_told_by_one_under_way(bucket, tmp_path):
    away = "http://127.0.0.1:9/x"
    with pytest.raises(
        GaveUp, match=r"http://127.0.0.1:9/x/run: its checkpoints can't be read .*check cluster.checkpoint_url"
    ):
        load(tmp_path / "a", away)
    save(tmp_path / "a", f"{bucket}/here", 1)
    save(tmp_path / "a", away, 2)
    told = [e for e in read_journal(tmp_path / "a" / EVENTS) if e["event"] == "not mirrored"]
    assert len(told) == 1 and told[0]["path"] == "step-00000002"
    assert load(tmp_path / "a", away) == (2, 2)
