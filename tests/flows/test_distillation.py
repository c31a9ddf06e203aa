"""A task whose model learns from a registered one: its key, and the whole way from its teacher to its report."""

import pytest

from flows.config import InvalidConfig, resolve
from flows.plan import make_plan

STUDENT = "tasks.sentiment.distil.student={n_layer: 1, n_head: 2, n_embd: 16, n_positions: 64}"


def plan(small_changes, *more):
    return make_plan(resolve("smoke", None, [*small_changes, *more])).tasks["sentiment"]


def test_the_key_has_the_teacher(small_changes):
    plain = plan(small_changes)
    first = plan(small_changes, STUDENT, "tasks.sentiment.distil.teacher=aaaa")
    other = plan(small_changes, STUDENT, "tasks.sentiment.distil.teacher=bbbb")
    hotter = plan(small_changes, STUDENT, "tasks.sentiment.distil.teacher=aaaa", "tasks.sentiment.distil.temperature=4")
    assert len({k.model.id for k in (plain, first, other, hotter)}) == 4
    assert {k.examples.id for k in (plain, first, other, hotter)} == {plain.examples.id}
    assert (plain.teacher, first.teacher) == (None, "aaaa")


def test_a_teacher_that_is_not_registered_is_refused(small_changes):
    with pytest.raises(InvalidConfig, match=r"tasks.sentiment.distil.teacher: .*is no version of gpt2-sentiment"):
        plan(small_changes, STUDENT, "tasks.sentiment.distil.teacher=models:/gpt2-recommendation@champion")
    with pytest.raises(InvalidConfig, match=r"distil.teacher: models:/gpt2-sentiment@nobody: .*`gpt2 models` lists"):
        plan(small_changes, STUDENT, "tasks.sentiment.distil.teacher=models:/gpt2-sentiment@nobody")
