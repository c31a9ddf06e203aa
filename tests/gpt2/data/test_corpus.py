"""Cleaning, duplicates and the split."""

import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data import corpus
from gpt2.data.config import CorpusConfig
from gpt2.data.corpus import TooManyBadDocuments, check_bad_share, clean, deduplicate, normalise
from gpt2.data.forms import Lines
from gpt2.data.readers import documents
from gpt2.data.sources import UnreadableFile, expand, left_out
from gpt2.data.splits import content_digest, is_validation


def write(path, texts):
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return str(path)


def pieces(out):
    return sorted(out.glob("documents-*.parquet"))


def test_clean_writes_pieces_and_quarantine(tmp_path):
    texts = [f"document number {i} with some words" for i in range(200)]
    source = write(tmp_path / "a.jsonl", [*texts[:100], "  ", "x" * 300, *texts[100:]])
    counts = clean(source, CorpusConfig(piece_bytes=1000, max_chars=200), tmp_path)
    assert counts["documents"] == 200 and counts["bad"] == 2
    assert counts["reasons"] == {"empty": 1, "too long": 1}
    assert counts["bytes"] == sum(len(t) for t in texts)
    assert counts["pieces"] == len(pieces(tmp_path)) > 3
    found = [t for p in pieces(tmp_path) for t in pq.read_table(p)["text"].to_pylist()]
    assert found == texts
    quarantine = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [q["line"] for q in quarantine] == [101, 102]
    assert quarantine[0]["source"] == source and quarantine[0]["byte_offset"] > 0


def test_cleaning_again_leaves_no_old_piece(tmp_path):
    source = write(tmp_path / "a.jsonl", ["some text here"] * 100)
    clean(source, CorpusConfig(piece_bytes=1000), tmp_path)
    clean(source, CorpusConfig(piece_bytes=10**6), tmp_path)
    assert len(pieces(tmp_path)) == 1


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_normalise_is_idempotent(text):
    once = normalise(text)
    assert normalise(once) == once
    assert "\r" not in once


def test_normalise():
    assert normalise("cafe\u0301\r\nline \rend \n ") == "café\nline \nend"


@pytest.mark.parametrize("bucket_rows", [10**6, 7])
def test_deduplicate_keeps_the_first_like_brute_force(tmp_path, monkeypatch, bucket_rows):
    monkeypatch.setattr(corpus, "BUCKET_ROWS", bucket_rows)
    generator = np.random.default_rng(0)
    documents = [[f"text {n}" for n in generator.integers(0, 40, size)] for size in (30, 1, 25)]
    paths = []
    for i, texts in enumerate(documents):
        paths.append(tmp_path / f"{i}.parquet")
        corpus.write_piece(texts, paths[-1])
    seen, expected = set(), []
    for texts in documents:
        expected.append([not (t in seen or seen.add(t)) for t in texts])
    assert [k.tolist() for k in deduplicate(paths)] == expected


def test_pieces_are_cut_by_bytes(tmp_path):
    (tmp_path / "a.txt").write_text(("字" * 100 + "\n") * 20)
    assert clean(str(tmp_path / "a.txt"), CorpusConfig(piece_bytes=1500), tmp_path)["pieces"] == 4


@pytest.mark.parametrize("text", ["short", "字" * 200, "🎬" * 200])
def test_length_is_the_texts_own_not_its_lines(tmp_path, monkeypatch, text):
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"text": text, "meta": "m" * 5000}) + "\n")  # characters spelled as \uXXXX
    counts = clean(str(source), CorpusConfig(max_chars=200), tmp_path)
    assert (counts["documents"], counts["bad"]) == (1, 0)
    source.write_text(json.dumps({"text": text}) + "\n")
    monkeypatch.setattr(corpus, "LINE_BYTES", 20)  # no more than the key and its quotes
    assert clean(str(source), CorpusConfig(max_chars=200), tmp_path)["documents"] == 1


def test_a_huge_compressed_line_is_not_held(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(b"x" * 60_000_000 + b"\nfine\n"))
    tracemalloc.start()
    found = list(documents(str(path), "text", 100_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(d.reason, d.line) for d in found] == [("too long", 1), (None, 2)]
    assert peak < 10_000_000


def test_quotes_that_never_close_are_read_in_linear_time(tmp_path, monkeypatch):
    path, reads = tmp_path / "a.csv", 0
    path.write_bytes(b"text\n" + b'a","\n' * 2000 + b'good\n"two\nlines"\n')
    following = Lines.__next__

    def counted(lines):
        nonlocal reads
        reads += 1
        return following(lines)

    monkeypatch.setattr(Lines, "__next__", counted)
    found = list(documents(str(path), "text", 1000))
    assert [d.text for d in found if d.reason is None] == ["good", "two\nlines"]
    assert sum(d.reason is not None for d in found) == 2000
    assert reads < 3 * 2003


def test_header_that_is_none_is_refused(tmp_path):
    for data in (b"text\ra\rb\r", b'"text\na\n'):
        (tmp_path / "a.csv").write_bytes(data)
        with pytest.raises(UnreadableFile, match=r"a\.csv has no readable header"):
            list(documents(str(tmp_path / "a.csv"), "text", 1000))


def test_a_bad_text_in_parquet_stays_local(tmp_path):
    buffers = [None, pa.py_buffer(struct.pack("<4i", 0, 2, 4, 6)), pa.py_buffer(b"ok\xff\xfeno")]
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, buffers)})
    pq.write_table(table, tmp_path / "a[1].parquet")  # and a name that looks like a pattern
    found = list(documents(str(tmp_path / "a[1].parquet"), "text", 100))
    assert [(d.line, d.reason) for d in found] == [(1, None), (2, "invalid UTF-8 at byte 0 of the document"), (3, None)]
    pq.write_table(pa.table({"text": pa.array(["x", None, "x"]).dictionary_encode()}), tmp_path / "b.parquet")
    assert [d.text for d in documents(str(tmp_path / "b.parquet"), "text", 100) if d.reason is None] == ["x", "x"]


def test_split_follows_content_and_share():
    marks = [content_digest(f"document {i}") for i in range(20_000)]
    share = sum(is_validation(m, 0.1) for m in marks) / len(marks)
    assert share == pytest.approx(0.1, abs=0.01)
    larger = {m for m in marks if is_validation(m, 0.2)}
    assert {m for m in marks if is_validation(m, 0.1)} <= larger


def test_too_many_bad_documents_stop_with_counts():
    counts = [{"documents": 990, "bad": 10, "reasons": {"NUL byte": 7, "empty": 3}, "quarantine": "/store/x"}]
    with pytest.raises(TooManyBadDocuments, match=r"10 of 1,000 documents are bad.*7 NUL byte, 3 empty.*/store/x"):
        check_bad_share(counts, CorpusConfig())
    check_bad_share(counts, CorpusConfig(max_bad_share=0.01))
    with pytest.raises(TooManyBadDocuments, match="no usable document"):
        check_bad_share([{"documents": 0, "bad": 0, "reasons": {}, "quarantine": "/store/x"}], CorpusConfig())


def test_files_that_are_not_read_are_counted(tmp_path):
    lines, indented = '{"text": "x"}\n', '{\n "text": 1\n}'
    read = {"a.jsonl": lines, "b.json": lines, "x/c4.00000.JSON.gz": lines, "d.tsv": "text\n", "e.ndjson": lines}
    others = {"config.json": indented, "x.json": "[\n", "x/a.bz2": "x", "x/b.jsonl.bz2": "x", "x/b.csv.bz2": "x"}
    for name, text in {**read, **others, "README": "x", "_SUCCESS": "", ".crc": "x"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [Path(file).name for file in expand([str(tmp_path)])] == [Path(name).name for name in sorted(read)]
    assert (left_out([str(tmp_path)]) or "").startswith(
        "6 files left out: 2 .json without an object per line, 1 without a suffix, 1 .bz2, 1 .csv.bz2, 1 .jsonl.bz2; "
        "read are .txt, .jsonl, .csv, .tsv, .parquet (.json and .ndjson as .jsonl; plain, .gz or .zst)"
    )
    assert left_out([str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl")]) is None
    with pytest.raises(ValueError, match=r"x\.json is one JSON text over several lines; write an object per line"):
        list(documents(str(tmp_path / "x.json"), "text", 100))


def test_marks_of_other_tools_are_text_and_said_once(tmp_path):
    poem = "<|startoftext|>A poem\nsecond line<|endoftext|>\n<|startoftext|>Another<|endoftext|><|startoftext|>Third\n"
    (tmp_path / "a.txt").write_text(poem + "last line\n")
    counts = clean(str(tmp_path / "a.txt"), CorpusConfig(), tmp_path)
    assert (counts["documents"], counts["marked"]) == (4, 3)
    [note] = corpus.notes(["sample:reviews"], [counts, {"documents": 1}])
    assert note.startswith("3 documents hold <|startoftext|> or <|endoftext|>, which is ordinary text; to split there")
    marks = json.loads(note.partition("corpus.split_at=")[2])
    split = CorpusConfig(split_at=marks)
    counts = clean(str(tmp_path / "a.txt"), split, tmp_path)
    assert (counts["documents"], counts["marked"], counts["bad"]) == (3, 0, 0)
    assert pq.read_table(pieces(tmp_path)[0])["text"].to_pylist() == [
        "A poem\nsecond line",
        "Another",
        "Third\nlast line",
    ]
    write(tmp_path / "b.jsonl", [poem, "none"])
    assert [d.text.strip() for d in documents(str(tmp_path / "b.jsonl"), "text", 1000, split.form, marks)] == [
        "A poem\nsecond line", "Another", "Third", "none",
    ]  # fmt: skip
    assert list(corpus.notes([], [counts])) == []
