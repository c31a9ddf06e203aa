"""Posts out of files: what is read, what is bad, and what makes two of them the same."""

import gzip
import json

import pandas as pd
import pytest

from gpt2.data.readers import UnreadableFile
from gpt2.data.tables import times
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.posts import mark, read

TIMED = MonitorConfig(time_field="time")


def write(path, rows: list[dict]):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_each_format_gives_the_same_posts(tmp_path):
    rows = [{"text": "Lost, my bag\nagain", "time": "2026-03-01T10:00:00Z"}, {"text": "on time", "time": "2026-03-02"}]
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    found = [read(str(tmp_path / f"a.{end}"), "inbox", TIMED) for end in ("jsonl", "jsonl.gz", "csv", "parquet")]
    for posts, bad in found:
        assert posts.equals(found[0][0]) and not bad
    assert [str(t) for t in found[0][0]["time"]] == ["2026-03-01 10:00:00+00:00", "2026-03-02 00:00:00+00:00"]


def test_a_post_is_known_again_when_its_file_grows_or_comes_under_another_name(tmp_path):
    same = {"text": "late again", "time": "2026-03-01T10:00:00Z"}
    first, _ = read(write(tmp_path / "a.jsonl", [same, same]), "inbox", TIMED)
    grown, _ = read(write(tmp_path / "b.jsonl", [same, same, {**same, "text": "other"}, same]), "inbox", TIMED)
    assert len(first) == 2 and len(grown) == 4
    assert set(first["post"]) <= set(grown["post"])
    elsewhere, _ = read(str(tmp_path / "a.jsonl"), "another inbox", TIMED)
    assert not set(first["post"]) & set(elsewhere["post"])
    named = MonitorConfig(id_field="id")
    by_id, _ = read(write(tmp_path / "c.jsonl", [{"text": "x", "id": 7}, {"text": "x edited", "id": 7}]), "c", named)
    assert by_id["text"].tolist() == ["x"]


def test_posts_whose_id_is_empty_are_known_as_where_there_are_no_ids(tmp_path):
    named, big = MonitorConfig(time_field="time", id_field="id"), 2**60
    at = {"time": "2026-03-01T10:00:00Z"}
    rows = [{"text": f"post {n}", "id": big + n, **at} for n in range(3)]
    alone, _ = read(write(tmp_path / "a.jsonl", rows), "inbox", named)
    bare = [{"text": "late again", "id": id, **at} for id in (None, None, "", "  ")] + [{"text": "on time", **at}]
    mixed, bad = read(write(tmp_path / "a.jsonl", [rows[0], bare[0], *rows[1:], *bare[1:]]), "inbox", named)
    assert len(mixed) == 8 and mixed["post"].is_unique and not bad
    assert set(alone["post"]) < set(mixed["post"])  # an empty id beside it changes no post's mark
    assert alone["post"].tolist() == [mark("id", str(big + n)) for n in range(3)]  # as ever
    without, _ = read(write(tmp_path / "b.jsonl", bare), "inbox", TIMED)
    assert set(without["post"]) == set(mixed["post"]) - set(alone["post"])
    for end in ("csv", "parquet"):
        table = pd.DataFrame({**at, "text": ["a", "b", "b"], "id": [7, None, None]}).astype({"id": "Int64"})
        table.to_csv(tmp_path / "c.csv", index=False), table.to_parquet(tmp_path / "c.parquet")
        found, _ = read(str(tmp_path / f"c.{end}"), "inbox", named)
        assert len(found) == 3 and found["post"][0] == mark("id", "7"), end


def test_without_a_time_the_files_name_tells_equal_posts_apart(tmp_path):
    one, two = (
        read(write(tmp_path / f"{n}.jsonl", [{"text": "thanks"}]), "inbox", MonitorConfig())[0] for n in ("mon", "tue")
    )
    assert one["post"][0] != two["post"][0] and one["time"].isna().all()


def test_bad_rows_are_told_and_a_line_that_is_being_written_waits(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "good", "time": 1772359200}\n{"text": "", "time": 1}\n[1]\nnot json\n{"text": "x", "time": "soon"}\n'
        '{"text": "half a l'
    )
    posts, bad = read(str(path), "inbox", TIMED)
    assert posts["text"].tolist() == ["good"]
    assert [number for number, _ in bad] == [2, 3, 4, 5] and "'time' is not a time" in bad[3][1]
    (tmp_path / "b.csv").write_text("text,time\nfine,2026-01-01\na,b,c\n")
    posts, bad = read(str(tmp_path / "b.csv"), "inbox", TIMED)
    assert len(posts) == 1 and bad == [(2, "3 fields, the header has 2")]


def test_a_file_that_is_none_is_refused_by_name(tmp_path):
    with pytest.raises(UnreadableFile, match=r"has no column 'text'; it has body: set text_field"):
        read(write(tmp_path / "a.jsonl", [{"body": "x"}]), "inbox", MonitorConfig())
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UnreadableFile, match=r"a\.parquet can't be read"):
        read(str(tmp_path / "a.parquet"), "inbox", MonitorConfig())
    with pytest.raises(UnreadableFile, match="has no columns"):
        read(write(tmp_path / "a.txt", []), "inbox", MonitorConfig())


def test_times_in_seconds_milliseconds_and_words():
    found = times(pd.Series([1772359200, "1772359200000", "2026-03-01 12:00+02:00", None, "x", -5], dtype=object))
    assert [str(t) for t in found[:3]] == ["2026-03-01 10:00:00+00:00"] * 3
    assert found[3:].isna().all()
