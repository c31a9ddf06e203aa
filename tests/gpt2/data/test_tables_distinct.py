"""Cells are read once for each distinct value, with what reading each one gives."""

import numpy as np
import pandas as pd
import pytest

from gpt2.data.tables import cell, cells, mapped, name_in

TEXTS = ["1", "1.0", " a ", "", "  ", "\u200bx", "x", "\x1c1\x1c", "é", "NA", None, "7\ud800", "a b", "\ufeff"]


@pytest.mark.parametrize("function", [cell, name_in])
@pytest.mark.parametrize(
    "column",
    [
        pd.Series(TEXTS * 3, dtype=object),
        pd.Series([t for t in TEXTS if t is None or t.isprintable()] * 3, dtype="str"),
        pd.Series(["u1", "u2", "u1"], dtype="str"),
        pd.Series([1.0, 2.5, np.nan, 1.0, -0.0, 0.0]),
        pd.Series([3, 1, 3], dtype="int64"),
        pd.Series([3, None, 3], dtype="Int64"),
        pd.Series([True, False, True]),
        pd.Series([1, True, 1.0, "1", [1], b"x", None, 1], dtype=object),
        pd.Series([], dtype="str"),
    ],
    ids=lambda column: str(column.dtype),
)
def test_each_cell_is_what_it_would_be_alone(column, function):
    column.index = pd.RangeIndex(5, 5 + len(column))
    pd.testing.assert_series_equal(mapped(column, function), column.map(function))
    if function is cell:
        pd.testing.assert_series_equal(cells(column), column.map(cell))


def test_a_distinct_value_is_read_once():
    seen = []
    mapped(pd.Series(["a", "b", "a"] * 50, dtype="str"), seen.append)
    assert sorted(seen) == ["a", "b"]
