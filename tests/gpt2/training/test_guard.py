"""Which steps are left out, which samples are barred, and what a checkpoint remembers of it."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.training.config import GuardConfig
from gpt2.training.guard import WARM, GaveUp, Guard


def warm(**config) -> Guard:
    guard = Guard(GuardConfig(**config))
    for step in range(WARM):
        assert guard.judge(1.0 + step / 100, step)
    return guard


@pytest.mark.parametrize("norm", [math.nan, math.inf, -math.inf, 1000.0])
def test_a_bad_norm_is_left_out_and_no_healthy_one_after_it(norm):
    guard = warm()
    limit = guard.limit
    assert not guard.judge(norm, WARM)
    assert guard.skipped == 1 and guard.bad == [WARM] and guard.limit == limit
    assert all(guard.judge(n, WARM + 1) for n in (1.0, 5.0, 0.1, 40.0))
    assert guard.bad == [] and guard.skipped == 1


def test_a_norm_of_zero_is_neither_bad_nor_usual():
    guard = warm()
    before = guard.state()
    assert guard.judge(0.0, WARM) and guard.state() == before


def test_before_it_knows_the_usual_only_numbers_that_are_none_are_bad():
    guard = Guard(GuardConfig())
    assert guard.judge(1e9, 0) and not guard.judge(math.nan, 1)


@given(st.sets(st.integers(0, 60)))
def test_windows_are_the_stream_without_the_barred(barred):
    guard = Guard(GuardConfig(), {"quarantined": sorted(barred)})
    expected = [w for w in range(200) if w not in barred][:100]
    assert [guard.window(step) for step in range(100)] == expected


def test_state_survives_json():
    guard = warm(max_bad_steps=2)
    guard.judge(math.nan, 20)
    guard.judge(0.1 + 0.2, 21)
    again = Guard(guard.config, json.loads(json.dumps(guard.state())))
    assert again.state() == guard.state() and again.limit == guard.limit


def test_it_goes_back_a_few_times_and_then_gives_up():
    guard = warm(max_bad_steps=2, max_rollbacks=1)
    for window in (20, 21):
        assert not guard.must_go_back
        guard.judge(math.nan, window)
    assert guard.must_go_back and guard.quarantine() == [20, 21]
    assert not guard.must_go_back and guard.window(20) == 22
    for window in (22, 23):
        guard.judge(math.inf, window)
    with pytest.raises(GaveUp, match=r"2 steps in a row.*1 rollbacks did not help.*batches 22 to 23"):
        guard.quarantine()
