"""A real MLflow server that goes away: what is recorded waits, and is there complete and once afterwards."""

import threading
import time

import pytest

from cluster.tracking import retry, runs
from cluster.tracking.retry import Unreachable
from cluster.tracking.runs import Run, Sender
from tests.services import Relay, free_port, mlflow_server


@pytest.fixture(scope="module")
def relay(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as port:
        relay = Relay(port)
        patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{relay.port}")
        runs.client.cache_clear()
        runs.experiment_id.cache_clear()
        yield relay
        relay.cut()
    patch.undo()
    runs.client.cache_clear()
    runs.experiment_id.cache_clear()


def history(run: Run) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in runs.client().get_metric_history(run.id, "loss")]


def test_metrics_are_complete_and_once_after_an_outage(relay):
    run = Run.open("outage", {"gpt2.artifact": "1"})
    started = time.monotonic()
    with Sender(run) as sending:
        for step in range(1, 200):
            if step == 50:
                relay.swallow = True  # the server has it, and we don't know
            if step == 80:
                relay.cut()
            sending.put({"loss": 1 / step}, step, 1e9 + step)
            time.sleep(0.01 if step < 80 else 0)
        assert time.monotonic() - started < 10  # whoever trains does not wait
        time.sleep(1)
        relay.swallow = False
        relay.mend()
    assert history(run) == [(step, pytest.approx(1 / step)) for step in range(1, 200)]


def test_the_next_driver_sends_what_the_one_before_could_not(relay, monkeypatch):
    monkeypatch.setattr(runs, "LEAVING", 0.5)
    run = Run.open("restart", {"gpt2.artifact": "2"})
    with pytest.raises(KeyboardInterrupt), Sender(run) as sending:
        sending.put({"loss": 3.0}, 1, 1e9)
        while not history(run):
            time.sleep(0.05)
        relay.cut()
        sending.put({"loss": 2.0}, 2, 1e9 + 1)
        raise KeyboardInterrupt
    relay.mend()
    again = Run.open("restart", {"gpt2.artifact": "2"})
    assert again.id == run.id
    with Sender(again) as sending:
        for step, loss in ((1, 3.0), (2, 2.0)):
            sending.put({"loss": loss}, step, 1e9 + step - 1)
    assert history(run) == [(1, 3.0), (2, 2.0)]


def test_while_a_training_goes_on_no_outage_is_too_long(relay, monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE", 0.0)  # every try is the last of its call
    run = Run.open("long", {"gpt2.artifact": "4"})
    with Sender(run) as sending:
        relay.cut()
        sending.put({"loss": 1.0}, 1, 1e9)
        time.sleep(1.5)
        relay.mend()
        while not sending.waiting.empty() or not history(run):
            time.sleep(0.05)
    assert history(run) == [(1, 1.0)]


def test_a_call_waits_for_the_server(relay):
    run = Run.open("call", {"gpt2.artifact": "3"})
    relay.cut()
    threading.Timer(1, relay.mend).start()
    run.tag({"a": 1})
    assert runs.client().get_run(run.id).data.tags["a"] == "1"


def test_a_server_that_never_answered_is_named(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(retry, "FIRST", 1.0)
    monkeypatch.setattr(retry, "_answered", threading.Event())
    runs.client.cache_clear()
    try:
        with pytest.raises(Unreachable, match=r"does not answer \(http://127.0.0.1:\d+: connection refused\)"):
            runs.client().search_experiments()
    finally:
        runs.client.cache_clear()
