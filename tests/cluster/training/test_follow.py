"""Following a journal that is appended to, cut, and put back."""

import json

from cluster.training.follow import JournalFollower, record_key
from gpt2.training.journal import Journal, append


def test_each_step_once_whatever_happens_to_the_file(tmp_path):
    path, got = tmp_path / "journal.jsonl", []
    with JournalFollower(path, record_key, lambda r: got.append((r["step"], r.get("loss"))), every=0.01) as follow:
        journal = Journal(path, 0)
        for step in range(1, 6):
            journal.write({"step": step, "loss": float(step)})
        journal.stream.write('{"step": 6, "lo')  # cut by a kill
        journal.stream.flush()
        while len(got) < 5:
            follow.stop.wait(0.01)
        again = Journal(path, 3)  # the next attempt goes back, and does three steps again
        for step in range(4, 9):
            again.write({"step": step, "loss": 10.0 * step})
        again.write({"step": 8, "validation_loss": 1.0})
    steps = [(step, float(step)) for step in range(1, 6)]
    assert got == [*steps, (6, 60.0), (7, 70.0), (8, 80.0), (8, None)]


def test_a_file_that_only_grows_is_read_once(tmp_path):
    path, got = tmp_path / "usage.jsonl", []
    append(path, {"who": "rank0", "time": 1})
    follow = JournalFollower(path, None, got.append)
    follow._read()
    follow._read()
    append(path, {"who": "rank0", "time": 1})
    with open(path, "ab") as stream:
        stream.write(json.dumps({"who": "rank1"}).encode())
    follow._read()
    assert got == [{"who": "rank0", "time": 1}] * 2
    with open(path, "ab") as stream:
        stream.write(b"\n")
    follow._read()
    assert got[2:] == [{"who": "rank1"}]
