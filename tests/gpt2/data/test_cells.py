"""A cell has a type: equal values in .csv, .jsonl and .parquet give equal rows, ids, labels and texts, at each door."""

import csv
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2.data.readers import UnreadableFile
from gpt2.data.tables import cell, read_table, records
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.posts import read
from gpt2.tasks.recommendation.catalogue import read_items, usable
from gpt2.tasks.recommendation.config import RecommendationSettings
from gpt2.tasks.sentiment.config import SentimentSettings
from gpt2.tasks.sentiment.dataset import read_labelled

FORMS = ("csv", "jsonl", "parquet")
BIG = 1234567890123456700
"""Beyond 2^53: as a float, its neighbours are the same number."""


def write(path: Path, rows: list[dict], schema: pa.Schema | None = None) -> Path:
    """Write rows in the form of the suffix; a key that is left out is an empty cell."""
    names = list({name: None for row in rows for name in row})
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        columns = {name: [row.get(name) for row in rows] for name in names}
        pq.write_table(pa.table(columns, schema=schema), path)
    return path


def doors(path: Path) -> list[list[list[str | None]]]:
    """The cells of a file, read whole and by row."""
    table = read_table(path)
    found = list(records(str(path)))
    assert all(fault is None for _, _, fault in found)
    names = list(table)
    return [
        [[cell(value) for value in row] for row in zip(*(table[name] for name in names), strict=True)],
        [[cell(row.get(name)) for name in names] for _, row, _ in found],
    ]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
KINDS = {
    "whole": (st.integers(-(2**63), 2**63 - 1), [pa.int64()]),
    "small": (st.integers(0, 9), [pa.int8(), pa.int64(), pa.float64(), pa.dictionary(pa.int8(), pa.int64())]),
    "truth": (st.booleans(), [pa.bool_()]),
    "text": (
        TEXT,
        [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
         pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int32(), pa.binary())],
    ),
}  # fmt: skip


@st.composite
def tables(draw):
    """(rows, schema) with two to four columns, each of one type, with gaps; the first row has all keys."""
    columns, fields = {}, []
    size = draw(st.integers(1, 6))
    for number in range(draw(st.integers(2, 4))):
        values, types = KINDS[draw(st.sampled_from(sorted(KINDS)))]
        columns[f"c{number}"] = draw(st.lists(st.none() | values, min_size=size, max_size=size))
        fields.append((f"c{number}", draw(st.sampled_from(types))))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], pa.schema(fields)


def arrow(rows: list[dict], schema: pa.Schema) -> pa.Table:
    def array(name: str, type: pa.DataType) -> pa.Array:
        values = [row[name] for row in rows]
        plain = type.value_type if pa.types.is_dictionary(type) else type
        if "binary" in str(plain):
            values = [None if value is None else value.encode() for value in values]
        made = pa.array(values, type=plain)
        return made.dictionary_encode() if plain is not type else made

    return pa.table({field.name: array(field.name, field.type) for field in schema})


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=tables(), sparse=st.booleans())
def test_equal_values_give_equal_cells_whatever_the_form(tmp_path, drawn, sparse):
    rows, schema = drawn
    right = [[None if value is None else str(value).strip() or None for value in row.values()] for row in rows]
    write(tmp_path / "a.csv", rows)
    left_out = [{k: v for k, v in row.items() if v is not None or not sparse} for row in rows[1:]]
    write(tmp_path / "a.jsonl", [rows[0], *left_out])
    pq.write_table(arrow(rows, schema), tmp_path / "a.parquet")
    for form in FORMS:
        assert doors(tmp_path / f"a.{form}") == [right, right], form


# Row 3: whole numbers beyond 2^53


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gap", [None, "user", "item", "fraction"])
def test_ids_stay_exact_beside_an_empty_cell_and_a_fraction(tmp_path, form, gap):
    if form == "parquet" and gap == "fraction":
        pytest.skip("a Parquet column has one type")
    items = [{"id": BIG + i, "title": f"Film {i}", "text": f"about {i}"} for i in range(10)]
    choices = [
        {"user": BIG + 1 + u, "item": BIG + (u + k) % 10, "time": 1_700_000_000 + 100 * u + k}
        for u in range(6)
        for k in range(5)
    ]
    if gap == "fraction":
        choices += [{**choices[0], "user": 1.5}]
    elif gap:
        choices += [{**choices[0], gap: None}]
        items += [{"id": None, "title": "nothing", "text": "of no id"}]
    write(tmp_path / f"items.{form}", items)
    write(tmp_path / f"interactions.{form}", choices)
    found, histories, _ = usable(tmp_path, RecommendationSettings(source=str(tmp_path), min_weight=None, min_items=4))
    assert sorted(histories.index) == [str(BIG + 1 + u) for u in range(6)]
    assert found["item"].tolist() == [str(BIG + i) for i in range(10)]


# Rows 14, N8 and 9: nullable columns, string views, bytes


@pytest.mark.parametrize("type", ["Int64", "boolean", "string", "category"])
def test_a_nullable_column_with_a_gap_has_an_empty_cell(tmp_path, type):
    labels = {"Int64": [1, None, 0], "boolean": [True, None, False]}.get(type, ["yes", None, "no"])
    table = pd.DataFrame({"text": pd.array(["a", "b", "c"], dtype="string"), "label": pd.array(labels, dtype=type)})
    table.to_parquet(tmp_path / "a.parquet")
    found, counts = read_labelled(tmp_path / "a.parquet", SentimentSettings())
    assert found["label"].tolist() == [str(labels[0]), str(labels[2])] and found["row"].tolist() == [1, 3]
    assert counts == {"rows": 3, "empty": 1}


@pytest.mark.parametrize("type", [pa.binary(), pa.large_string(), pa.string_view(), pa.binary_view()], ids=str)
def test_text_is_text_in_each_type_of_parquet(tmp_path, type):
    texts = ["in place crew", "late “again”", "on time"]
    column = pa.array([t.encode() for t in texts] if "binary" in str(type) else texts, type=type)
    pq.write_table(pa.table({"text": column, "label": column, "id": column}), tmp_path / "a.parquet")
    found, _ = read_labelled(tmp_path / "a.parquet", SentimentSettings())
    assert found["text"].tolist() == found["label"].tolist() == texts
    posts, bad = read(str(tmp_path / "a.parquet"), "inbox", MonitorConfig(id_field="id", topic_field="label"))
    assert posts["text"].tolist() == posts["topic"].tolist() == texts and not bad
    write(tmp_path / "a.jsonl", [{"text": t, "label": t, "id": t} for t in texts])
    same, _ = read(str(tmp_path / "a.jsonl"), "inbox", MonitorConfig(id_field="id", topic_field="label"))
    assert same["post"].tolist() == posts["post"].tolist()


def test_bytes_that_are_no_text_are_counted_and_spoil_no_other_cell(tmp_path):
    column = pa.array([b"good", b"\xff\xfe\x00", "gü".encode()])
    pq.write_table(pa.table({"text": column, "label": ["a", "b", "a"]}), tmp_path / "a.parquet")
    found, counts = read_labelled(tmp_path / "a.parquet", SentimentSettings())
    assert found["text"].tolist() == ["good", "gü"] and counts["empty"] == 1
    posts, bad = read(str(tmp_path / "a.parquet"), "inbox", MonitorConfig())
    assert posts["text"].tolist() == ["good", "gü"] and [number for number, _ in bad] == [2]


def test_a_list_is_no_label(tmp_path):
    rows = [{"text": "a", "label": ["x"]}, {"text": "b", "label": ["y", "z"]}]
    for form in ("jsonl", "parquet"):
        found, counts = read_labelled(write(tmp_path / f"a.{form}", rows), SentimentSettings())
        assert found.empty and counts == {"rows": 2, "empty": 2}


# Row 22: keys that some rows leave out


def test_a_post_without_an_optional_key_has_no_topic_and_no_id(tmp_path):
    config = MonitorConfig(topic_field="topic", id_field="id", time_field="at")
    rows = [{"text": "a", "at": "2026-01-01"}, {"text": "b", "at": "2026-01-02", "topic": "t", "id": 7}, {"at": 1}]
    posts, bad = read(str(write(tmp_path / "a.jsonl", rows)), "inbox", config)
    assert posts["topic"].isna().tolist() == [True, False] and [number for number, _ in bad] == [3]
    with pytest.raises(UnreadableFile, match="has no column 'id'; it has text, at: set id_field"):
        read(str(write(tmp_path / "b.jsonl", rows[:1])), "inbox", config)


# Row 11: columns without a name


def test_the_index_of_a_table_is_no_attribute(tmp_path):
    items = pd.DataFrame({"id": ["a", "b"], "title": ["Film 1", "Film 2"], "genre": ["dogs", "cats"]})
    items.to_csv(tmp_path / "a.csv")
    pd.read_csv(tmp_path / "a.csv").to_csv(tmp_path / "b.csv")  # with two of them
    items.set_index(pd.Index([7, 9])).to_parquet(tmp_path / "c.parquet")
    for name in ("a.csv", "b.csv", "c.parquet"):
        found, _ = read_items(tmp_path / name, RecommendationSettings())
        assert found["text"].tolist() == ["genre: dogs", "genre: cats"], name


# Row 42: invisible characters at an end


@pytest.mark.parametrize("form", FORMS)
def test_what_nobody_sees_at_an_end_makes_no_label_and_no_id(tmp_path, form):
    labels = ["pos", "pos\u200b", "\ufeffpos ", "a\u200db", " \u200b "]
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    found, counts = read_labelled(write(tmp_path / f"a.{form}", rows), SentimentSettings())
    assert found["label"].tolist() == ["pos", "pos", "pos", "a\u200db"] and counts["empty"] == 1
    items = [{"id": "1\ufeff", "title": "one"}, {"id": "1", "title": "again"}]
    found, counts = read_items(write(tmp_path / f"i.{form}", items), RecommendationSettings())
    assert found["item"].tolist() == ["1"] and counts["items_repeated"] == 1
