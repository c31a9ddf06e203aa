"""GPT-2's ids exactly, and a BPE of one's own."""

import contextlib
import json
from functools import cache
from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Rust
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from gpt2.samples import fetch
from gpt2.tokenizer import Tokenizer

# The pattern of the published encoder (openai/gpt-2, encoder.py).
PATTERN = regex.compile(r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""")


class BruteForce:
    """BPE as the paper says it: merge the pair of lowest rank until there is none."""

    def __init__(self, vocabulary, merges):
        self.ids = json.loads(vocabulary.read_text())
        lines = merges.read_text("utf-8").split("\n")[1:]
        self.ranks = {tuple(line.split()): i for i, line in enumerate(lines) if line}
        keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [b for b in range(256) if b not in keep]
        self.letters = {b: chr(b) for b in keep} | {b: chr(256 + i) for i, b in enumerate(others)}

    def encode(self, text):
        out = []
        for word in PATTERN.findall(text):
            parts = [self.letters[b] for b in word.encode()]
            while len(parts) > 1:
                rank, i = min((self.ranks.get(pair, 10**9), i) for i, pair in enumerate(pairwise(parts)))
                if rank == 10**9:
                    break
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            out += [self.ids[p] for p in parts]
        return out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return fetch("gpt2-bpe", tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def published(files):
    return Tokenizer.gpt2(files / "encoder.json", files / "vocab.bpe"), BruteForce(
        files / "encoder.json", files / "vocab.bpe"
    )


CASES = [
    "Hello world", "  two  spaces ", "tabs\tand\n\nlines\r\n", "it's we've I'm you'll they'd DON'T", "3.14 1,000,000",
    "🎬🍿👩‍👩‍👧", "naïve café", "日本語のテキスト", "<|endoftext|>", " <|endoftext|> ", "\u2028\u00a0\u3000", "a" * 300,
    "",
]  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_published_ids_on_hard_cases(published, text):
    ours, reference = published
    ids = ours.encode(text)
    assert ids == reference.encode(text)
    assert ours.decode(ids) == text
    assert ours.end_of_text == 50256 and 50256 not in ids


@settings(max_examples=400, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_published_ids_on_any_text(published, text):
    ours, reference = published
    ids = ours.encode(text)
    assert ids == reference.encode(text)
    assert ours.decode(ids) == text


def test_known_ids(published):
    assert published[0].encode("Hello world") == [15496, 995]


def test_lone_surrogate_is_refused(published):
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud800' at character 2"):
        published[0].encode("ab\ud800")


@cache
def text() -> str:
    return " ".join(f"word{i % 97} number{i % 31} and {'abcdefgh'[i % 8] * (i % 5)}" for i in range(3000))


@pytest.mark.parametrize("size", [300, 380])
def test_own_bpe_is_deterministic_lossless_and_of_its_size(tmp_path, size):
    paths = []
    for name in "ab":
        Tokenizer.train([text()], size).save(tmp_path / name)
        paths.append(tmp_path / name / "tokenizer.json")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    tokenizer = Tokenizer.load(tmp_path / "a")
    assert tokenizer.vocab_size == size and tokenizer.end_of_text == size - 1
    for sample in (*CASES, text()[:500]):
        ids = tokenizer.encode(sample)
        assert tokenizer.decode(ids) == sample
        assert all(0 <= i < size - 1 for i in ids)


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match=r"only 2.. token ids, not tokenizer.vocab_size=5000; add text"):
        Tokenizer.train(["tiny"], 5000)


def test_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="is missing"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_transformers_reads_it(tmp_path):
    from transformers import PreTrainedTokenizerFast

    Tokenizer.train([text()], 300).save(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs("word1 and abc")["input_ids"] == Tokenizer.load(tmp_path).encode("word1 and abc")


@settings(max_examples=400, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_own_bpe_gives_the_ids_of_its_file_on_any_text(own, sample):
    assert own.fast is not None
    assert own.encode(sample) == own.rust.encode(sample, add_special_tokens=False).ids


@settings(max_examples=40, deadline=None)
@given(st.text("ab c'", min_size=50, max_size=400), st.data())
def test_any_own_bpe_gives_the_ids_of_its_file(learnt, data):
    with contextlib.suppress(ValueError):  # too little text for so many ids
        own = Tokenizer.train([learnt], data.draw(st.integers(258, 280)))
        for sample in data.draw(st.lists(st.text("ab c'", max_size=200), min_size=5, max_size=5)):
            assert own.encode(sample) == own.rust.encode(sample, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def own():
    return Tokenizer.train([text()], 380)


def test_white_space_without_end(own):
    for sample in (" " * 2_000_000 + "x", " \n" * 50_000, "a" * 300_000):
        assert own.encode(sample) == own.rust.encode(sample, add_special_tokens=False).ids


def test_merge_lists_that_ids_alone_do_not_tell_are_left_to_the_slow_way():
    # c+d comes before b+cd; "bcd" is a token by bc+d only, which never comes about
    merges = [("c", "d"), ("b", "c"), ("bc", "d")]
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, "cd", "bc", "bcd", "<|endoftext|>"]
    rust = Rust(BPE({token: i for i, token in enumerate(tokens)}, merges))
    rust.pre_tokenizer, rust.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    rust.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    tokenizer = Tokenizer(rust)
    assert tokenizer.fast is None
    assert [tokens[i] for i in tokenizer.encode("bcd")] == ["b", "cd"]
