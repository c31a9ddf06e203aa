"""GPT-2's ids exactly, and a BPE of one's own."""

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import unicodedata
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

from gpt2.data.samples import fetch
from gpt2.data.tokenizer import Tokenizer, byte_letters

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
        return [i for word in PATTERN.findall(text) for i in self.word(word)]

    @cache  # noqa: B019
    def word(self, word):
        parts = [self.letters[b] for b in word.encode()]
        while len(parts) > 1:
            rank, i = min((self.ranks.get(pair, 10**9), i) for i, pair in enumerate(pairwise(parts)))
            if rank == 10**9:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [self.ids[p] for p in parts]


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


def drawn(n, seed, vocabulary=()):
    """`n` strings of up to 12 pieces: any code points, the common ones, white space, numbers, contractions, emoji,
    `<|endoftext|>`, and tokens of the vocabulary."""
    draw = random.Random(seed)
    spaces = [c for c in map(chr, range(0x3001)) if c.isspace()]
    digits = [c for c in map(chr, range(0x20000)) if c.isnumeric()]
    emoji = ["🎬", "👩‍👩‍👧", "👍🏽", "🇩🇪", "1️⃣", "❤️", "\u200d", "\ufe0f", "🏴\U000e0067\U000e007f"]
    contractions = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "’s", "'", "''s"]

    def code_point(end):
        code = draw.randrange(end - 0x800)
        char = chr(code if code < 0xD800 else code + 0x800)
        # The reference's Unicode is younger than ours: letters that Python's does not know yet may differ.
        young = unicodedata.category(char) == "Cn" and regex.match(r"\p{L}|\p{N}", char)
        return code_point(end) if young else char

    pieces = [
        lambda: code_point(0x110000),
        lambda: code_point(0x10000),
        lambda: code_point(0x3800),
        lambda: chr(draw.randrange(128)),
        lambda: "".join(draw.choices(spaces, k=draw.randint(1, 6))),
        lambda: draw.choice(" \n\t") * draw.randint(1, 9),
        lambda: "".join(draw.choices(digits, k=draw.randint(1, 5))),
        lambda: str(draw.randrange(10 ** draw.randint(1, 12))),
        lambda: draw.choice(["it", "we", "DON", ""]) + draw.choice(contractions),
        lambda: draw.choice(emoji),
        lambda: draw.choice(["<|endoftext|>", "<|endoftext", "|>", " <|endoftext|>"]),
        lambda: draw.choice(vocabulary or ["x"]),
    ]
    return ["".join(draw.choice(pieces)() for _ in range(draw.randint(0, 12))) for _ in range(n)]


@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**64))
def test_published_ids_on_twelve_thousand_strings(published, seed):
    ours, reference = published
    tokens = [ours.decode([i]) for i in range(50256)]
    texts = drawn(12_000, seed, [token for token in tokens if "\ufffd" not in token])
    assert len(texts) == 12_000 and len({c for text in texts for c in text}) > 10_000
    ids = [ours.encode(text) for text in texts]
    wrong = [text for text, i in zip(texts, ids, strict=True) if i != reference.encode(text)]
    assert not wrong, f"{wrong[:3]!a}"
    assert [ours.decode(i) for i in ids] == texts
    assert ours.end_of_text not in set().union(*ids)


def test_known_ids(published):
    assert published[0].encode("Hello world") == [15496, 995]


@pytest.mark.parametrize("text", ["ab\ud800", "ab\udfff\ud83c", "ab\udc80" + "x" * 200_000])
def test_lone_surrogate_is_refused(published, text):
    for function in (published[0].encode, lambda t: published[0].encode(t, allow_end_of_text=True)):
        with pytest.raises(ValueError, match=r"lone surrogate '\\ud...' at character 2; remove it"):
            function(text)


def test_end_of_text_is_text_unless_allowed(published):
    """Documents with `<|endoftext|>` between them are what the pipeline writes: each encoded alone, ids end to end."""
    ours, _ = published
    documents = [text.replace("<|endoftext|>", "") for text in drawn(300, 5)]
    whole = "<|endoftext|>".join(documents)
    assert 50256 not in ours.encode(whole)
    apart = [i for document in documents for i in [*ours.encode(document), 50256]][:-1]
    assert ours.encode(whole, allow_end_of_text=True) == apart
    ours.rust.encode_special_tokens = False
    assert ours.slowly(whole) == apart
    ours.rust.encode_special_tokens = True
    assert ours.decode(apart) == whole


def test_ids_of_another_tokenizer_are_not_decoded(published):
    with pytest.raises(ValueError, match=r"id 50257 is out of range, 0 to 50256; decode with the tokenizer that made"):
        published[0].decode([1, 50257, 2])
    with pytest.raises(ValueError, match="id -1 is out of range"):
        published[0].decode([0, -1])


@cache
def text() -> str:
    return " ".join(f"word{i % 97} number{i % 31} and {'abcdefgh'[i % 8] * (i % 5)}" for i in range(3000))


@cache
def rich_text() -> str:
    """Enough different words for 65,536 ids."""
    draw = random.Random(0)
    syllables = [a + b for a in "bcdfghklmnprstvwz" for b in "aeiou"]
    return " ".join("".join(draw.choices(syllables, k=draw.randint(2, 6))) for _ in range(60_000))


def test_any_vocabulary_size_from_300_to_65536():
    """Each works, and has the tokens of the next smaller one first."""
    smaller: dict[int, str] = {}
    for size in (300, 301, 1000, 32_767, 50_257, 65_536):
        tokenizer = Tokenizer.train([rich_text()], size)
        tokens = {i: token for token, i in tokenizer.rust.get_vocab().items()}
        assert tokenizer.vocab_size == len(tokens) == size and tokens.pop(tokenizer.end_of_text) == "<|endoftext|>"
        assert smaller.items() <= tokens.items() and tokenizer.end_of_text == size - 1
        smaller = tokens
        for sample in (rich_text()[:20_000], *CASES):
            ids = tokenizer.encode(sample)
            assert tokenizer.decode(ids) == sample and ids == tokenizer.slowly(sample)
        assert max(tokenizer.encode(rich_text()[:20_000])) > 0.9 * size - 100  # late merges are used


LEARN = (
    "import sys, pathlib; from gpt2.data.tokenizer import Tokenizer, byte_letters; t = sys.stdin.read().split('.')\n"
)


def test_learning_again_writes_the_same_bytes(tmp_path):
    """In other processes, with other hash seeds and numbers of threads."""
    text, written = rich_text()[:200_000], set()
    for name, threads in (("a", "1"), ("b", "2"), ("c", "5")):
        code = f"{LEARN}Tokenizer.train(t, 3000).save(pathlib.Path({str(tmp_path / name)!r}))"
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run([sys.executable, "-c", code], input=text, text=True, check=True, env=environment)
        written.add((tmp_path / name / "tokenizer.json").read_bytes())
    assert len(written) == 1


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


@pytest.fixture
def folder(own, tmp_path):
    own.save(tmp_path)
    return tmp_path


def edit(folder, function):
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    function(spec)
    path.write_text(json.dumps(spec))


def test_a_file_may_not_cut_text(own, folder):
    """`transformers` saves the truncation and padding that it was last called with."""
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    fill = {"strategy": {"Fixed": 512}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    edit(folder, lambda s: s.update(truncation=cut, padding={**fill, "pad_type_id": 0, "pad_token": "!"}))
    again = Tokenizer.load(folder)
    for sample in ("some more words than four", "word1 " * 30_000):
        assert again.encode(sample) == own.encode(sample)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda s: s.update(added_tokens=[]), r"has no <\|endoftext\|>"),
        (
            lambda s: s["model"]["vocab"].update(extra=9_999),
            "has 381 tokens with ids up to 9999; they must be 0 to 380",
        ),
        (lambda s: s.update(normalizer={"type": "Lowercase"}), r"loses text \(0 of 256"),
        (lambda s: s.update(normalizer={"type": "NFC"}), "loses text"),
        (lambda s: s["pre_tokenizer"].update(add_prefix_space=True), "loses text"),
        (lambda s: s.update(pre_tokenizer={"type": "WhitespaceSplit"}), "loses text"),
        (lambda s: s.update(decoder=None), "loses text"),
        (lambda s: s["model"].update(vocab={"a": 0}, merges=[]), r"loses text \(255 of 256"),
        (lambda s: s["model"].update(type="WordPiece"), "is not a tokenizer"),
        (lambda s: s.update(model="x" * 100), "is not a tokenizer"),
    ],
)
def test_tokenizers_of_another_kind_are_refused(folder, function, message):
    edit(folder, function)
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    assert Tokenizer.load(folder, 380).vocab_size == 380
    with pytest.raises(ValueError, match=r"has 380 ids, the model 50257: .*give the tokenizer that the model was"):
        Tokenizer.load(folder, 50257)


def test_the_two_files_of_older_models(published, files, tmp_path):
    """`vocab.json` and `merges.txt`; other names, which other files in the folder may give, are never followed."""
    shutil.copy(files / "encoder.json", tmp_path / "vocab.json")
    with pytest.raises(ValueError, match=r"is not a tokenizer: .*merges\.txt"):
        Tokenizer.load(tmp_path)
    shutil.copy(files / "vocab.bpe", tmp_path / "merges.txt")
    names = {"vocab_file": "../../../../etc/passwd", "merges_file": "/etc/passwd", "tokenizer_file": "../x.json"}
    hostile = {**names, "auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(hostile))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    again = Tokenizer.load(tmp_path, 50257)
    for text in drawn(100, 3):
        assert again.encode(text) == published[0].encode(text)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "merges.txt").write_text("#version: 0.2\nnothere either\n")
    with pytest.raises(ValueError, match=r"is not a tokenizer: .*are not a BPE's vocabulary and merges"):
        Tokenizer.load(tmp_path)


def test_tokens_that_were_added_to_the_two_files(files, tmp_path):
    """They lie in a third file; in a text they are text, as end-of-text is."""
    shutil.copy(files / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(files / "vocab.bpe", tmp_path / "merges.txt")
    added = {"<|pad|>": 50258, "<|startoftext|>": 50257}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = Tokenizer.load(tmp_path, 50259)
    assert tokenizer.end_of_text == 50256 and tokenizer.decode([50257, 15496, 50258]) == "<|startoftext|>Hello<|pad|>"
    text = "Hello<|pad|> <|endoftext|>"
    assert tokenizer.encode(text) == tokenizer.slowly(text) and max(tokenizer.encode(text)) < 50256
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").record == tokenizer.record
    for wrong, reason in (
        ({"<|pad|>": 50300}, "'<|pad|>' has the id 50300, but the next free one is 50257"),
        ([], "no"),
    ):
        (tmp_path / "added_tokens.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="is not a tokenizer: .*" + re.escape(reason)):
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
    assert own.encode(sample) == own.slowly(sample)


@settings(max_examples=40, deadline=None)
@given(st.text("ab c'", min_size=50, max_size=400), st.data())
def test_any_own_bpe_gives_the_ids_of_its_file(learnt, data):
    with contextlib.suppress(ValueError):  # too little text for so many ids
        own = Tokenizer.train([learnt], data.draw(st.integers(258, 280)))
        for sample in data.draw(st.lists(st.text("ab c'", max_size=200), min_size=5, max_size=5)):
            assert own.encode(sample) == own.slowly(sample)


@pytest.fixture(scope="module")
def own():
    return Tokenizer.train([text()], 380)


def test_both_ways_know_the_same_letters_digits_and_spaces():
    """Their tables of Unicode agree: every character is in the same word beside a letter, a digit and a sign."""
    letters = sorted(ByteLevel.alphabet())
    merges = [(a, b) for a in "a1!" for b in letters]
    tokens = [*byte_letters(), *("".join(pair) for pair in merges), "<|endoftext|>"]
    rust = Rust(BPE({token: i for i, token in enumerate(tokens)}, merges))
    rust.pre_tokenizer, rust.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    rust.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    both = Tokenizer(rust)
    assert both.fast is not None
    codes = [*range(0xD800), *range(0xE000, 0x14000), *range(0x14000, 0x110000, 29)]
    for start in range(0, len(codes), 5000):
        text = "".join(f"a{c}1{c}!{c}\n" for c in map(chr, codes[start : start + 5000]))
        assert both.encode(text) == both.slowly(text)


def test_white_space_without_end(own):
    for sample in (" " * 2_000_000 + "x", " \n" * 50_000, "a" * 300_000):
        assert own.encode(sample) == own.slowly(sample)


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
