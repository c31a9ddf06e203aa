"""Byte-level BPE (Radford et al. 2019): GPT-2's own vocabulary, or one learned from a corpus."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import tiktoken
from tokenizers import AddedToken
from tokenizers import Tokenizer as Rust
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from gpt2.data.config import END_OF_TEXT
from gpt2.store.artifact import digest
from gpt2.store.model_files import inside, read_json

FILE = "tokenizer.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"  # the two files of older models
ADDED = "added_tokens.json"  # their third, if tokens were added: {token: id}
CONFIG, RECORD = "config.json", "tokenizer_sha256"  # where our saved models record their tokenizer
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
"""GPT-2's pattern of words (openai/gpt-2, `encoder.py`), without needless backtracking.

Letters and numbers are those of Unicode 16. A tokenizer with an older Unicode treats newer ones as punctuation, and may
give other ids for texts with them.
"""
SAMPLE = "A b\tC\n\n  'll 12\u00e9 \u0130e\u0301\ufb01 " + END_OF_TEXT  # normalisation or stripping would change it
SHORT = 100_000  # characters; at ten times as many, of white space, tiktoken's regular expressions overflow their stack


class Tokenizer:
    """Lossless conversion of text to ids and back.

    The end-of-text id never comes from user text. It is the last id, both in GPT-2's tokenizer and in trained ones.
    """

    def __init__(self, rust: Rust):
        """Raise `ValueError` if there is no end-of-text, if ids are missing, or if text would be lost."""
        self.rust, vocabulary = rust, rust.get_vocab()
        self.vocab_size, highest = len(vocabulary), max(vocabulary.values(), default=-1)
        if END_OF_TEXT not in vocabulary:
            raise ValueError(
                f"the tokenizer has no {END_OF_TEXT}; if another token ends its texts, give that one's id as "
                f"eos_token_id in {CONFIG} beside it"
            )
        if highest != self.vocab_size - 1:
            raise ValueError(
                f"the tokenizer has {self.vocab_size} tokens with ids up to {highest}; they must be 0 to "
                f"{self.vocab_size - 1}; use its original file"
            )
        self.end_of_text = vocabulary[END_OF_TEXT]
        rust.encode_special_tokens = True  # `<|endoftext|>` in a document is text
        rust.no_truncation()  # a file may ask for both, which loses text
        rust.no_padding()
        if (bytes_lost := byte_letters().keys() - vocabulary) or self.decode(self.slowly(SAMPLE)) != SAMPLE:
            raise ValueError(
                f"the tokenizer loses text ({len(bytes_lost)} of 256 bytes have no id); it is not a byte-level BPE "
                f"such as GPT-2's"
            )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from texts, deterministically; `ValueError` if the text is too small for `vocab_size` ids."""
        rust = Rust(BPE())
        rust.pre_tokenizer = ByteLevel(add_prefix_space=False)
        rust.decoder = ByteLevelDecoder()
        trainer = BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=sorted(ByteLevel.alphabet()),
            special_tokens=[],
            show_progress=False,
        )
        rust.train_from_iterator(valid(texts), trainer)
        rust.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        if rust.get_vocab_size() != vocab_size:
            raise ValueError(
                f"the text yields only {rust.get_vocab_size()} token ids, not tokenizer.vocab_size={vocab_size}; "
                f"add text or lower vocab_size"
            )
        return cls(rust)

    @classmethod
    def gpt2(
        cls, vocabulary: Path, merges: Path, added: dict[str, int] | None = None, end: str = END_OF_TEXT
    ) -> Tokenizer:
        """Read GPT-2's tokenizer from its published `encoder.json` and `vocab.bpe`; `ValueError` if they are something
        else. `added` are tokens with their ids, which follow those of the vocabulary and of end-of-text, `end`."""
        try:
            rust = Rust(BPE.from_file(str(vocabulary), str(merges)))
        except Exception as error:  # the Rust library raises bare Exception
            raise ValueError(f"{vocabulary} and {merges} are not a BPE's vocabulary and merges: {error}") from None
        rust.pre_tokenizer = ByteLevel(add_prefix_space=False)
        rust.decoder = ByteLevelDecoder()
        added = {} if added is None else added
        ids = {end: -1} | added
        for token in sorted(ids, key=ids.__getitem__):
            rust.add_special_tokens([AddedToken(token, special=True, normalized=False)])
            if added.get(token, rust.token_to_id(token)) != rust.token_to_id(token):
                raise ValueError(
                    f"the added token {token!r:.100} has the id {added[token]}, but the next free one is "
                    f"{rust.token_to_id(token)}; give its tokenizer.json"
                )
        return cls(with_end_of_text(rust, end))

    @classmethod
    def load(cls, path: Path, vocab_size: int | None = None) -> Tokenizer:
        """Read a `tokenizer.json`, a directory that holds one, or a directory with `vocab.json` and `merges.txt`, and
        `added_tokens.json` if it is there.

        Files of other names and links to elsewhere are never read. Where the tokenizer has no `<|endoftext|>`, the
        `eos_token_id` of the directory's config.json is called so. `ValueError` if the directory's model was saved with
        another tokenizer, or if the number of ids is not `vocab_size`.
        """
        file = path / FILE if path.is_dir() else path
        if path.is_dir():
            for name in (FILE, VOCABULARY, MERGES, ADDED):
                inside(path / name)
        try:
            if path.is_dir() and not file.exists() and (path / VOCABULARY).exists():
                added, known = added_tokens(path / ADDED), read_json(path / VOCABULARY)
                tokenizer = cls.gpt2(path / VOCABULARY, path / MERGES, added, end_of(path, {**known, **added}))
            else:
                rust = Rust.from_str(file.read_text("utf-8"))
                tokenizer = cls(with_end_of_text(rust, end_of(path, rust.get_vocab())))
        except FileNotFoundError:
            raise ValueError(f"{file} is missing; give a directory with {FILE}") from None
        except Exception as error:  # the Rust library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer: {error}") from None
        if path.is_dir():
            tokenizer.check_model(path, f" in {path}")
        if vocab_size is not None:
            tokenizer.check(vocab_size, f" in {path}")
        return tokenizer

    def check(self, vocab_size: int, where: str = "") -> None:
        """Raise `ValueError` if the tokenizer does not have `vocab_size` ids, as the model has."""
        if vocab_size != self.vocab_size:
            raise ValueError(
                f"the tokenizer{where} has {self.vocab_size} ids, the model {vocab_size}: they don't belong "
                f"together; give the tokenizer that the model was trained with"
            )

    @cached_property
    def record(self) -> dict[str, str]:
        """The tokenizer's hash, for a model's config.json. It differs for every tokenizer that gives other ids."""
        tokens = sorted(vocabulary := self.rust.get_vocab(), key=vocabulary.__getitem__)
        merges = json.loads(self.rust.to_str())["model"].get("merges")
        return {RECORD: digest([tokens, merges, self.slowly(SAMPLE)])}

    def check_model(self, directory: Path, where: str = "") -> None:
        """Raise `ValueError` if the directory's model says that it was saved with another tokenizer."""
        path = directory / CONFIG
        config = read_json(path) if path.exists() else None
        if isinstance(config, dict) and RECORD in config and config[RECORD] != self.record[RECORD]:
            raise ValueError(
                f"the tokenizer{where} gives other ids than the one that the model in {directory} was saved with "
                f"({RECORD} {self.record[RECORD][:12]} here, {config[RECORD]!s:.12} in its {CONFIG}); give its own"
            )

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`, which `transformers.PreTrainedTokenizerFast` reads too."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / FILE).write_text(self.rust.to_str(pretty=False), "utf-8")

    def encode(self, text: str, allow_end_of_text: bool = False) -> list[int]:
        """Return the ids of a text; `ValueError` for a lone surrogate.

        `<|endoftext|>` is ordinary text unless allowed: then it becomes the end-of-text id. Never allow it for text
        from outside.
        """
        parts = text.split(END_OF_TEXT) if allow_end_of_text else [text]
        ids = self.encode_array(parts[0]).tolist()
        for part in parts[1:]:
            ids += [self.end_of_text, *self.encode_array(part).tolist()]
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return [self.encode(text) for text in texts]

    def encode_array(self, text: str) -> np.ndarray:
        """Return the ids of a text, (ids,) uint32; `ValueError` for a lone surrogate."""
        [text] = valid([text])
        if self.fast is not None and len(text) <= SHORT:
            return self.fast.encode_to_numpy(text, disallowed_special=())
        return np.array(self.slowly(text), dtype=np.uint32)

    def slowly(self, text: str) -> list[int]:
        """Return the ids of a text, from the merge list alone."""
        return self.rust.encode(text, add_special_tokens=False).ids

    @cached_property
    def fast(self) -> tiktoken.Encoding | None:
        """The same tokenizer in `tiktoken`, several times as fast; None if it might give other ids."""
        ranks = byte_ranks(self.rust)
        return (
            tiktoken.Encoding("byte-level", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
            if ranks
            else None
        )

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id. Only joined bytes are sure to be UTF-8."""
        letters = byte_letters()
        tokens = sorted(vocabulary := self.rust.get_vocab(), key=vocabulary.__getitem__)
        return [bytes(letters[c] for c in t) if letters.keys() >= set(t) else t.encode() for t in tokens]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; it inverts `encode`.

        Bytes that are not UTF-8 become U+FFFD. `ValueError` for ids out of range.
        """
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            strange = min(ids) if min(ids) < 0 else max(ids)
            raise ValueError(
                f"id {strange} is out of range, 0 to {self.vocab_size - 1}; decode with the tokenizer that made the ids"
            )
        return self.rust.decode(ids, skip_special_tokens=False)


def valid(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts; `ValueError` if one can't be encoded as UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"a lone surrogate {text[error.start]!a} at character {error.start}; remove it") from None
        yield text


def byte_ranks(rust: Rust) -> dict[bytes, int] | None:
    """Return {bytes of a token: its id} for `tiktoken`; None if merging by id could differ from the merge list.

    `tiktoken` joins two neighbours if their concatenation is a token, the lowest id first. BPE joins a pair that is in
    the merge list, the earliest first. The two agree if every merge makes a new token, in the order of ids, and each
    token's bytes alone become that token.

    Pairs outside the list do no harm. If one with a token's bytes came up in a text, it would also come up, and stay,
    when those bytes are encoded alone: nothing has been joined across their ends by then.
    """
    spec = json.loads(rust.to_str())
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    model, before = spec["model"], spec["pre_tokenizer"] or {}
    options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    if (
        model["type"] != "BPE"
        or any(model.get(name) for name in options)
        or spec["normalizer"]
        or any(before.get(name) != value for name, value in plain.items())
        or [token["content"] for token in spec["added_tokens"]] != [END_OF_TEXT]
    ):
        return None
    vocabulary, merged = model["vocab"], ["".join(pair) for pair in model["merges"]]
    letters = byte_letters()
    tokens = [*letters, *merged]
    ids = [vocabulary.get(token) for token in tokens]
    if set(tokens) != set(vocabulary) - {END_OF_TEXT} or any(a >= b for a, b in pairwise(ids[len(letters) :])):
        return None
    if any([piece.id for piece in rust.model.tokenize(token)] != [vocabulary[token]] for token in tokens):
        return None
    return {bytes(letters[letter] for letter in token): vocabulary[token] for token in tokens}


def added_tokens(path: Path) -> dict[str, int]:
    """Return {token: id} of an `added_tokens.json`, {} if there is none; `ValueError` if it holds something else."""
    added = read_json(path) if path.exists() else {}
    if not isinstance(added, dict) or not all(type(id) is int for id in added.values()):
        raise ValueError(f"{path} is not a JSON object of tokens and ids; give its tokenizer.json")
    return added


def end_of(directory: Path, vocabulary: dict[str, int]) -> str:
    """Return the token that ends texts: `<|endoftext|>`, or, if there is none, that of config.json's `eos_token_id`."""
    if END_OF_TEXT in vocabulary or not (directory / CONFIG).exists():
        return END_OF_TEXT
    config = read_json(directory / CONFIG)
    id = config.get("eos_token_id") if isinstance(config, dict) else None
    return next((token for token, number in vocabulary.items() if type(id) is int and number == id), END_OF_TEXT)


def with_end_of_text(rust: Rust, end: str) -> Rust:
    """Return the tokenizer with its token `end` called `<|endoftext|>`. All ids stay."""
    if end == END_OF_TEXT:
        return rust
    spec = json.loads(rust.to_str())
    vocabulary = spec["model"]["vocab"]
    if end in vocabulary:
        vocabulary[END_OF_TEXT] = vocabulary.pop(end)
    for token in spec["added_tokens"]:
        if token["content"] == end:
            token |= {"content": END_OF_TEXT, "special": True, "normalized": False}
    return Rust.from_str(json.dumps(spec))


def byte_letters() -> dict[str, int]:
    """Return {letter: byte}, the letters that stand for bytes in GPT-2's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
