"""Cleaning, duplicates and the split."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2 import corpus
from gpt2.config import CorpusConfig
from gpt2.corpus import TooManyBadDocuments, check_bad_share, clean, deduplicate, is_validation, normalise


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
    assert len(pieces(tmp_path)) > 3
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


def test_split_follows_content_and_share():
    marks = [corpus.content_digest(f"document {i}") for i in range(20_000)]
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
