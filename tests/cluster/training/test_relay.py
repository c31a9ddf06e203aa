"""Lines of workers reach the driver's files, each once, whatever is restarted or replaced."""

import json

import pytest
import ray

from cluster.connect import connect, disconnect
from cluster.training import follow
from cluster.training.follow import STOP, receiving, sending
from cluster.training.usage import USAGE
from cluster.training.worker import gave_up
from gpt2.training.journal import EVENTS, JOURNAL, Events, Journal, append, read_journal


@pytest.fixture(scope="module", autouse=True)
def local_ray(session_home):
    connect()
    yield
    disconnect()


@pytest.fixture
def places(tmp_path):
    """The folders of a driver and of two workers, on machines of their own."""
    for name in ("driver", "one", "two"):
        (tmp_path / name).mkdir()
    return [tmp_path / name for name in ("driver", "one", "two")]


def until(condition):
    for _ in range(200):
        if condition():
            return True
        ray.get(wait.remote())
    return False


@ray.remote(num_cpus=0)
def wait():
    import time

    time.sleep(0.1)


def test_lines_of_all_machines_arrive_once_also_after_restarts(places):
    driver, one, two = places
    Events(driver).tell("launch", workers=2)
    with receiving(driver, gave_up) as mailbox:
        for attempt in range(2):
            for place in (one, two):
                with sending(mailbox, place):
                    Events(place).tell("begin", step=attempt)
                    append(place / USAGE, {"who": place.name, "time": attempt})
    assert [e["event"] for e in read_journal(driver / EVENTS)] == ["launch", *["begin"] * 4]
    assert [(u["who"], u["time"]) for u in read_journal(driver / USAGE)] == [
        ("one", 0), ("two", 0), ("one", 1), ("two", 1)
    ]  # fmt: skip


def test_the_journal_is_that_of_the_latest_attempt_wherever_it_runs(places):
    driver, one, two = places
    with receiving(driver, gave_up) as mailbox:
        with sending(mailbox, one):
            journal = Journal(one / JOURNAL, 0)
            for step in range(1, 6):
                journal.write({"step": step, "loss": step})
            journal.stream.write('{"step": 6, "lo')  # cut by a kill
            journal.stream.flush()
        with sending(mailbox, two):  # a machine that knows nothing of the steps before
            again = Journal(two / JOURNAL, 3)
            for step in range(4, 8):
                again.write({"step": step, "loss": 10 * step})
            again.rewind(5)
            again.write({"step": 6, "loss": 600})
    assert [(r["step"], r["loss"]) for r in read_journal(driver / JOURNAL)] == [
        (1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 600)
    ]  # fmt: skip


def test_the_wish_to_stop_and_the_reason_to_give_up_arrive(places):
    driver, one, two = places
    with receiving(driver, gave_up) as mailbox, sending(mailbox, one) as said:
        assert not (one / STOP).exists()
        (driver / STOP).touch()
        assert until((one / STOP).exists)
        (driver / STOP).unlink()
        assert until(lambda: not (one / STOP).exists())
        Events(one).tell("gave up", reason="the disk is full")
        assert until(lambda: said.get("gave_up") == "the disk is full")
        with sending(mailbox, two) as other:
            assert other["gave_up"] == "the disk is full"


def test_a_journal_of_no_lines_takes_nothing_away(tmp_path):
    path = tmp_path / JOURNAL
    path.write_text(json.dumps({"step": 1}) + "\n")
    follow.take_journal(path, True, b"")
    assert read_journal(path) == [{"step": 1}]
