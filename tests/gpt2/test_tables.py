"""Tables out of files: ids and labels stay what the file has, and each reader names what is wrong."""

import gzip

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.commands.use import read_inputs
from gpt2.data.config import PLAIN
from gpt2.data.tables import cell, json_records, missing, read_table, records

BIG = 2**60
"""Its neighbours are the same as a float."""


def test_a_whole_number_beside_an_empty_cell_is_no_float(tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"id": {BIG}, "w": 1.5}}\n{{"id": null, "w": 2}}\n{{"id": {BIG + 1}}}\n')
    (tmp_path / "a.csv").write_text(f"id,w\n{BIG},1.5\n,2\n{BIG + 1},\n")
    pq.write_table(pa.table({"id": [BIG, None, BIG + 1], "w": [1.5, 2.0, None]}), tmp_path / "a.parquet")
    for end in ("jsonl", "csv", "parquet"):
        table = read_table(tmp_path / f"a.{end}")
        assert [cell(value) for value in table["id"]] == [str(BIG), None, str(BIG + 1)], end
        assert pd.to_numeric(table["w"])[:2].tolist() == [1.5, 2.0]
    (tmp_path / "b.jsonl").write_text('{"id": 7, "w": 1}\n{"id": 8, "w": 0.5}\n')
    assert read_table(tmp_path / "b.jsonl").dtypes.map(str).tolist() == ["int64", "float64"]


def test_rows_are_the_same_as_those_of_the_whole_table(tmp_path):
    rows = [{"text": 'he said "no", twice\nand left', "label": "NA"}, {"text": "é\u2028ü", "label": "007"}]
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    for end in ("csv", "parquet", "jsonl"):
        assert read_table(tmp_path / f"a.{end}").to_dict("records") == rows
        assert list(records(str(tmp_path / f"a.{end}"))) == [(n, row, None) for n, row in enumerate(rows, 1)]
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    assert [row for _, row, _ in records(str(tmp_path / "a.csv.gz"))] == rows


def test_a_last_line_waits_for_its_end_where_the_file_may_grow(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\n[2]\n{"a": ')
    growing = [(1, {"a": 1}, None), (2, {}, "list, not an object")]
    assert list(json_records(str(path), PLAIN)) == growing
    assert list(json_records(str(path), PLAIN, whole=True)) == [*growing, (3, {}, "not JSON")]
    path.write_bytes(b'{"a": 1}')
    assert list(json_records(str(path), PLAIN)) == growing[:1]


def test_a_missing_column_is_named_with_the_setting():
    assert missing(["a", 7], {"text_field": "a", "time_field": None}) is None
    assert missing(["a", 7], {"text_field": "a", "id_field": "b"}) == "no column 'b'; it has a, 7: set id_field"


@pytest.mark.parametrize(
    ("name", "content", "inputs"),
    [
        ("a.txt", b"\xef\xbb\xbfone\r\n\r\ntwo", ["one", "two"]),
        ("a.jsonl", b'"one"\n\n{"text": "two"}\n{"a": 1}', ["one", "two", {"a": 1}]),
        ("a.csv", b"text,n\nNA,1\n007,2\n", ["NA", "007"]),
    ],
)
def test_inputs_are_read_as_they_are_written(tmp_path, name, content, inputs):
    (tmp_path / name).write_bytes(content)
    assert read_inputs(tmp_path / name) == inputs


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"one\xff\n" + "é\u2028ü".encode(), "line 1 has invalid UTF-8 at byte 3; mend it, or set encoding"),
        ("a.txt", b"\xff\xfeo\x00x", "is no utf-16, or is cut"),
        ("a.jsonl", b'"one"\n\n[2]', "row 2 is [2], neither a string nor an object"),
        ("a.jsonl", b'"one"\n{"text": ', "row 2 is not JSON"),
        ("a.csv", b"body\nx\n", "has no column 'text'; it has body: set --text-field"),
        ("a.csv", b"", "has no column 'text'; it has none"),
        ("a.parquet", b"PAR1", "can't be read as Parquet"),
        ("a.doc", b"x", "is not one of .txt, .jsonl, .csv, .tsv, .parquet"),
        ("a.csv", None, "does not exist"),
    ],
)
def test_a_file_of_inputs_that_is_none_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"--input .*{name}") as caught:
        read_inputs(tmp_path / name)
    assert message in str(caught.value)
