"""A space as people write it, and what is drawn from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2 import search
from gpt2.search import Range


def test_dots_and_sections_say_the_same():
    dotted = {"train.batch_size": [8, 16], "train.optimizer.learning_rate": {"low": "1e-4", "high": 1e-2, "log": True}}
    nested = {
        "train": {"optimizer": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}, "batch_size": [8, 16]}
    }
    found = search.dimensions(dotted)
    assert found == search.dimensions(nested)
    assert found["train.optimizer.learning_rate"] == Range(low=1e-4, high=1e-2, log=True)
    assert search.dimensions(search.plain(found)) == found


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"train": {"batch_size": 8}}, r"train\.batch_size = 8 is neither a range nor choices"),
        ([1], r"\[1\] is neither a range"),
        ({"a": []}, r"a = \[\]: there is nothing to choose from"),
        ({"a": [1, 2, 1]}, "1 is given twice"),
        ({"a": {"low": 2, "high": 1}}, "low=2 is not below high=1"),
        ({"a": {"low": 0, "high": 1, "log": True}}, "low=0 has no logarithm"),
        ({"a": {"low": 1}}, r"a\.high: Field required"),
        ({"a": {"low": 1, "high": 2, "step": 1}}, r"a\.step: Extra inputs"),
        ({"a": {"low": 1, "high": float("inf")}}, r"a\.high: .*finite"),
        ({"a.b": [1], "a": {"b": [2]}}, r"a\.b is given twice"),
    ],
)
def test_what_is_no_space_is_named(given, told):
    with pytest.raises(ValueError, match=told):
        search.dimensions(given)


numbers = st.floats(1e-8, 1e6)


@given(st.lists(numbers, min_size=2, max_size=2, unique=True), st.booleans(), st.integers(0, 99))
def test_what_is_drawn_lies_in_its_range(pair, log, seed):
    low, high = sorted(pair)
    whole = {"n"} if high >= 1 else set()
    dimensions = {"x": Range(low=low, high=high, log=log), "n": Range(low=max(1, low), high=high + 2, log=log)}
    for number in range(5):
        found = search.draw(dimensions, {"n"} | whole, seed, number)
        assert low <= found["x"] <= high
        assert isinstance(found["n"], int) and round(max(1, low)) <= found["n"] <= round(high + 2)


def test_draws_follow_from_the_seed_and_their_number_and_reach_all():
    dimensions = {"n": Range(low=1, high=4), "rate": Range(low=1e-4, high=1, log=True), "kind": ["a", "b"]}
    found = [search.draw(dimensions, {"n"}, 0, i) for i in range(2000)]
    assert found[7] == search.draw(dimensions, {"n"}, 0, 7) != search.draw(dimensions, {"n"}, 1, 7)
    for value in (1, 2, 3, 4):  # each as likely
        assert sum(f["n"] == value for f in found) == pytest.approx(500, abs=100)
    assert sum(f["kind"] == "a" for f in found) == pytest.approx(1000, abs=130)
    for power in (-4, -3, -2, -1):  # each ratio as likely
        assert sum(10.0**power <= f["rate"] < 10.0 ** (power + 1) for f in found) == pytest.approx(500, abs=110)
    assert all(f["rate"] == float(f"{f['rate']:.3g}") for f in found)
