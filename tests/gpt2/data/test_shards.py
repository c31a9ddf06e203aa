"""Tokens on disk are the kept documents of each split, and are read back as one array."""

import numpy as np
import pytest

from gpt2.data import corpus
from gpt2.data.shards import TokenStream, encode_piece, training_texts
from gpt2.data.splits import content_digest, is_validation
from gpt2.data.tokenizer import Tokenizer


@pytest.fixture
def shards(tmp_path):
    texts = [f"document {i} says {i * i}" for i in range(300)]
    corpus.write_piece(texts, tmp_path / "piece.parquet")
    keep = np.arange(300) % 3 != 0
    tokenizer = Tokenizer.train(texts, 300)
    return tmp_path, texts, keep, tokenizer


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_shards_hold_the_kept_documents_of_each_split(shards, dtype):
    folder, texts, keep, tokenizer = shards
    counts = encode_piece(folder / "piece.parquet", keep, tokenizer, dtype, 0.3, folder)
    expected = {"train": [], "validation": []}
    for text, kept in zip(texts, keep, strict=True):
        if kept:
            split = "validation" if is_validation(content_digest(text), 0.3) else "train"
            expected[split] += [*tokenizer.encode(text), tokenizer.end_of_text]
    for split, tokens in expected.items():
        stream = TokenStream([folder / f"{split}.bin"], dtype)
        assert stream.read(0, len(stream)).tolist() == tokens
        assert counts[f"{split}_tokens"] == len(tokens)
    assert counts["train_documents"] + counts["validation_documents"] == keep.sum()
    kept_bytes = sum(len(t.encode()) for t, k in zip(texts, keep, strict=True) if k)
    assert counts["train_bytes"] + counts["validation_bytes"] == kept_bytes
    assert len(list(training_texts(folder / "piece.parquet", keep, 0.3))) == counts["train_documents"]


def test_vocabulary_that_does_not_fit_is_refused(shards, monkeypatch):
    folder, _, keep, tokenizer = shards
    tokenizer.vocab_size = 70_000
    with pytest.raises(ValueError, match="70000 does not fit token_dtype=uint16; use uint32"):
        encode_piece(folder / "piece.parquet", keep, tokenizer, "uint16", 0.3, folder)


def test_mask_of_another_length_is_refused(shards):
    folder, _, keep, tokenizer = shards
    for wrong in (keep[:-1], np.append(keep, True)):
        with pytest.raises(ValueError, match=rf"piece\.parquet has 300 documents, not {len(wrong)}"):
            encode_piece(folder / "piece.parquet", wrong, tokenizer, "uint16", 0.3, folder)


def test_stream_is_one_array_over_files(tmp_path):
    generator = np.random.default_rng(0)
    parts = [generator.integers(0, 60_000, n).astype("<u2") for n in (7, 0, 1, 30)]
    paths = [tmp_path / f"{i}.bin" for i in range(4)]
    for path, part in zip(paths, parts, strict=True):
        part.tofile(path)
    stream, whole = TokenStream(paths, "uint16"), np.concatenate(parts)
    assert len(stream) == 38
    for start in range(38):
        for count in range(39 - start):
            assert stream.read(start, count).tolist() == whole[start : start + count].tolist()
    with pytest.raises(IndexError):
        stream.read(30, 9)


def test_cut_shard_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"a\.bin.*it is cut"):
        TokenStream([tmp_path / "a.bin"], "uint16")
