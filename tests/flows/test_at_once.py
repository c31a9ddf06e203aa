"""More runs at a time than SQLite stands are refused, before anything starts."""

import pytest

from cluster.services.databases import SQLITE_RUNS
from flows.commands.services import check_at_once, up


def test_more_than_was_measured_needs_postgresql():
    with pytest.raises(ValueError, match=rf"more than the {SQLITE_RUNS} runs that were measured.*--profile postgres"):
        up(at_once=SQLITE_RUNS + 1)
    assert check_at_once(SQLITE_RUNS, "sqlite") == SQLITE_RUNS
    assert check_at_once(SQLITE_RUNS + 1, "postgres") == SQLITE_RUNS + 1
    with pytest.raises(ValueError, match="--at-once=0: lets nothing run"):
        up(at_once=0)


def test_what_the_pool_says_is_limited_by_the_worker_on_sqlite():
    assert check_at_once(None, "sqlite") == SQLITE_RUNS and check_at_once(None, "postgres") is None
