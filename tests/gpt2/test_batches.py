"""Every sample once per epoch, in one order at any world size; tokens as they were written."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2 import corpus
from gpt2.batches import TokenDataset, permute, rank_slices, sample_indices
from gpt2.corpus import content_digest, is_validation
from gpt2.shards import TokenStream, encode_piece, training_texts
from gpt2.tokenizer import Tokenizer


@given(st.integers(1, 3000), st.integers(0, 2**31 - 1), st.integers(0, 50))
def test_permute_is_a_bijection(n, seed, epoch):
    images = permute(np.arange(n), n, seed, epoch)
    assert sorted(images.tolist()) == list(range(n))


def test_permute_mixes_and_depends_on_seed_and_epoch():
    n = 10_000
    a, b, c = permute(np.arange(n), n, 0, 0), permute(np.arange(n), n, 1, 0), permute(np.arange(n), n, 0, 1)
    for x, y in ((a, b), (a, c), (a, np.arange(n))):
        assert (x == y).mean() < 0.01
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.05
    neighbours = np.abs(np.diff(a))
    assert neighbours.mean() == pytest.approx(n / 3, rel=0.05)


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_every_sample_once_per_epoch_at_any_world_size(world, micro, accumulation, seed):
    batch = world * micro * accumulation
    n = 5 * batch + 3
    steps = 3 * n // batch + 1
    order = [sample_indices(step, batch, n, seed) for step in range(steps)]
    for step, indices in enumerate(order):
        parts = [rank_slices(indices, rank, world, micro) for rank in range(world)]
        assert all(len(p) == accumulation for p in parts)
        read = np.concatenate([m for p in parts for m in p])
        assert sorted(read) == sorted(indices), step
    stream = np.concatenate(order)
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_lengths_put_like_with_like():
    lengths = np.array([5, 90, 7, 80, 6, 85, 8, 95])
    parts = rank_slices(np.arange(8), 0, 1, 4, lengths)
    assert [sorted(p.tolist()) for p in parts] == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch_size=10 is not divisible by micro_batch_size=2 x num_workers=2"):
        rank_slices(np.arange(10), 0, 2, 2)


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
    data = TokenDataset(stream, 5)
    assert len(data) == 7
    batch = data.batch([0, 6], 0)
    assert batch["ids"].tolist() == [whole[0:5].tolist(), whole[30:35].tolist()]
    assert batch["targets"].tolist() == [whole[1:6].tolist(), whole[31:36].tolist()]


def test_cut_shard_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"a\.bin.*it is cut"):
        TokenStream([tmp_path / "a.bin"], "uint16")
