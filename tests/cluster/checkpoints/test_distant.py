"""Checkpoints of ranks on machines that share an S3 server and nothing else."""

import json
import shutil

import pytest

from cluster.checkpoints.distant import DistantCheckpointer
from cluster.checkpoints.files import Mirror, verify
from gpt2.store.artifact import MANIFEST
from gpt2.store.remote import CHECKPOINTS, Remote
from gpt2.training.guard import GaveUp
from gpt2.training.journal import EVENTS, JOURNAL, Events, Journal, read_journal
from gpt2.training.loop import QUARANTINE
from tests.cluster.checkpoints.test_checkpointer import HEADER, RANKS, Shares

pytestmark = pytest.mark.usefixtures("group")


@pytest.fixture
def remote(s3, request):
    return Remote(f"s3://bucket/{request.node.name}")


def checkpoints(remote, output, header=HEADER, earlier=None):
    output.mkdir(exist_ok=True)
    events = Events(output)
    return DistantCheckpointer(
        remote, "base-1", output / "_checkpoints", 2, None, header, events, lambda: None, None, earlier
    )


def save(remote, folder, *steps, ranks=range(RANKS)):
    """Ranks 0 and 1 are on one machine, 2 and 3 on another; ranks that are left out died before they wrote."""
    for step in steps:
        parts = {rank: checkpoints(remote, folder / ("one" if rank < 2 else "two")) for rank in ranks}
        for rank, part in parts.items():
            part.attempt = "attempt"
            part.save(Shares(rank, step), step, {"norms": [step / 3]}, None)
        for part in parts.values():
            part.wait()


def load(remote, output, **options):
    engine = Shares(0, -1)
    step, state = checkpoints(remote, output, **options).load(engine)
    return step, engine.value, state


def told(output, event):
    return [e for e in read_journal(output / EVENTS) if e["event"] == event]


def test_any_machine_goes_on_from_fragments_of_all(remote, tmp_path):
    assert load(remote, tmp_path / "one") == (0, -1, {})
    save(remote, tmp_path, 1, 2, 3)
    for machine in ("one", "two", "three"):
        assert load(remote, tmp_path / machine) == (3, 3, {"norms": [1.0]})
        verify(tmp_path / machine / "_checkpoints" / "step-00000003")
    assert remote.names(f"{CHECKPOINTS}/base-1") == ["step-00000002", "step-00000003"]
    assert not [n for n in remote.names(f"{CHECKPOINTS}/base-1/step-00000003") if n.startswith("seal")]
    assert [e["step"] for e in told(tmp_path / "one", "checkpoint")] == [1, 2, 3]
    own = {p.name for p in (tmp_path / "two" / "_checkpoints" / "step-00000002").iterdir()}
    assert own == {f"state-{rank:05d}-of-00004.safetensors" for rank in (2, 3)}  # it held its own fragments only


def test_without_all_ranks_there_is_no_checkpoint(remote, tmp_path, monkeypatch):
    save(remote, tmp_path, 1)
    monkeypatch.setattr("cluster.checkpoints.distant.PATIENCE", 0.5)
    with pytest.raises(TimeoutError, match=r"seal-attempt-00003\.json"):
        save(remote, tmp_path, 2, ranks=range(3))
    assert load(remote, tmp_path / "three")[:2] == (1, 1)


def test_a_damaged_one_is_passed_over_and_only_damaged_ones_are_refused(remote, tmp_path):
    save(remote, tmp_path, 1, 2)
    for step in (2, 1):
        place = f"{CHECKPOINTS}/base-1/step-{step:08d}/state-00002-of-00004.safetensors"
        remote.write(place, remote.read(place)[:-1] + b"?")
        if step == 2:
            assert load(remote, tmp_path / "three")[:2] == (1, 1)
            assert "is not what its manifest says" in told(tmp_path / "three", "damaged checkpoint")[0]["reason"]
    with pytest.raises(GaveUp, match="none of its 2 checkpoints is intact"):
        load(remote, tmp_path / "four")
    remote.remove(f"{CHECKPOINTS}/base-1/step-00000002/{MANIFEST}")
    remote.remove(f"{CHECKPOINTS}/base-1/step-00000001/{MANIFEST}")
    assert load(remote, tmp_path / "five") == (0, -1, {})


def test_a_damaged_cache_is_fetched_anew(remote, tmp_path):
    save(remote, tmp_path, 1)
    assert load(remote, tmp_path / "three")[0] == 1
    fragment = tmp_path / "three" / "_checkpoints" / "step-00000001" / "state-00001-of-00004.safetensors"
    fragment.write_text("x" * len(fragment.read_text()))
    assert load(remote, tmp_path / "three")[:2] == (1, 1)


def test_the_journal_and_what_is_left_out_come_along(remote, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    Journal(one / JOURNAL, 0).write({"step": 1, "loss": 2.0})
    save(remote, tmp_path, 1)
    load(remote, tmp_path / "three")
    assert read_journal(tmp_path / "three" / JOURNAL) == [{"step": 1, "loss": 2.0}]
    (tmp_path / "three" / QUARANTINE).write_text("[7]")
    assert load(remote, tmp_path / "three")[0] == 1
    assert json.loads((tmp_path / "three" / QUARANTINE).read_text()) == [7]


def test_another_training_is_continued_and_another_job_refused(remote, tmp_path):
    save(remote, tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "one")
    earlier = Mirror(f"{remote.url}/{CHECKPOINTS}", "base-1", Events(None))
    fresh = Remote(f"{remote.url}/fresh")
    assert load(fresh, tmp_path / "six", earlier=earlier)[:2] == (2, 2)
    with pytest.raises(GaveUp, match=r"can't be continued: job\.data was 'a' and is 'b'"):
        load(remote, tmp_path / "seven", header={"job": {**HEADER["job"], "data": "b"}})
