"""Where a training's time went, against an account made by hand."""

import pytest

from gpt2.training.cost import account


def test_a_run_with_a_failure_and_a_dead_driver():
    events = [
        {"event": "launch", "time": 100.0},
        {"event": "begin", "time": 110.0, "step": 0, "reached": 0, "last": None, "load_seconds": 0.0},
        {"event": "checkpoint", "time": 120.5, "step": 10, "stall": 0.5},
        {"event": "failure", "time": 132.0, "workers": {"0": "Connection reset by peer", "1": "its process died"}},
        {"event": "begin", "time": 145.0, "step": 10, "reached": 19, "last": 129.0, "load_seconds": 2.0},
        {"event": "bad step", "time": 156.0, "step": 21},
        {"event": "launch", "time": 200.0},
        {"event": "begin", "time": 208.0, "step": 20, "reached": 25, "last": 160.0, "load_seconds": 1.0},
        {"event": "end", "time": 230.0, "step": 30},
    ]
    journal = [{"step": s, "time": t} for s, t in ((10, 120.0), (19, 154.0), (20, 155.0), (25, 213.0), (30, 230.0))]
    told = account(journal, events)
    (restart,) = told.restarts
    assert restart.cause == "worker 1: its process died"
    assert (restart.detect, restart.restart, restart.reload, restart.recompute) == (3.0, 11.0, 2.0, 9.0)
    assert restart.seconds == 25.0
    assert told.lost == {
        "starting workers": 10.0 + 7.0,
        "not running": 40.0,
        "until a failure was noticed": 3.0,
        "restarting workers": 11.0,
        "loading checkpoints": 2.0 + 1.0,
        "steps done again": 9.0 + 5.0,
        "waiting for checkpoints": 0.5,
    }
    assert told.wall == 130.0 and told.goodput == pytest.approx(1 - 88.5 / 130)
    assert told.metrics() == {"goodput": told.goodput, "restarts": 1, "skipped_steps": 1}


def test_nothing_is_no_error():
    assert account([], []).goodput == 0.0
