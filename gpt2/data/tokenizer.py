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
VOCABULARY, MERGES = "vocab.json", "merges.txt"  # the same in the two files of older models
CONFIG, RECORD = "config.json", "tokenizer_sha256"  # where a saved model tells which tokenizer it has; others don't
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
"""GPT-2's words (openai/gpt-2, `encoder.py`), without needless backtracking. Letters and numbers are Unicode 16's: what
knows an older Unicode takes those that came since for signs, and may cut texts with them into other words and ids."""
SAMPLE = "A b\tC\n\n  'll 12\u00e9 \u0130e\u0301\ufb01 " + END_OF_TEXT  # what normalisation and stripping would change
SHORT = 100_000  # characters; on white space ten times as long tiktoken's regular expressions overflow their stack


class Tokenizer:
    """Text to ids and back, without loss. One id is the end-of-text, which user text never becomes: the last of our own
    tokenizers' and of GPT-2's."""

    def __init__(self, rust: Rust):
        """`ValueError` where there is no end-of-text, ids are left out, or text would be lost."""
        self.rust, vocabulary = rust, rust.get_vocab()
        self.vocab_size, highest = len(vocabulary), max(vocabulary.values(), default=-1)
        if END_OF_TEXT not in vocabulary:
            raise ValueError(f"the tokenizer has no {END_OF_TEXT}; it is not a GPT-2 tokenizer")
        if highest != self.vocab_size - 1:
            raise ValueError(
                f"the tokenizer has {self.vocab_size} tokens with ids up to {highest}; a model needs the ids 0 to "
                f"{self.vocab_size - 1}: was its file edited?"
            )
        self.end_of_text = vocabulary[END_OF_TEXT]
        rust.encode_special_tokens = True  # `<|endoftext|>` in a document is text
        rust.no_truncation()  # a file may ask for both, and lose text
        rust.no_padding()
        if (bytes_lost := byte_letters().keys() - vocabulary) or self.decode(self.slowly(SAMPLE)) != SAMPLE:
            raise ValueError(
                f"the tokenizer loses text ({len(bytes_lost)} of 256 bytes have no id); it is not a byte-level BPE "
                f"such as GPT-2's"
            )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges; `ValueError` where the text is too small for `vocab_size` ids. Deterministic."""
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
    def gpt2(cls, vocabulary: Path, merges: Path) -> Tokenizer:
        """GPT-2's tokenizer from its published `encoder.json` and `vocab.bpe`; `ValueError` where they are not that."""
        try:
            rust = Rust(BPE.from_file(str(vocabulary), str(merges)))
        except Exception as error:  # the Rust library raises bare Exception
            raise ValueError(f"{vocabulary} and {merges} are not a BPE's vocabulary and merges: {error}") from None
        rust.pre_tokenizer = ByteLevel(add_prefix_space=False)
        rust.decoder = ByteLevelDecoder()
        rust.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        return cls(rust)

    @classmethod
    def load(cls, path: Path, vocab_size: int | None = None) -> Tokenizer:
        """From a `tokenizer.json`, or a directory that holds one, or a `vocab.json` with its `merges.txt`.

        Only files of these names are read, whatever others say, and no links to elsewhere. `ValueError` where a model
        in the directory was saved with another tokenizer, and where the tokenizer has not the model's `vocab_size`.
        """
        file = path / FILE if path.is_dir() else path
        if path.is_dir():
            for name in (FILE, VOCABULARY, MERGES):
                inside(path / name)
        try:
            if path.is_dir() and not file.exists() and (path / VOCABULARY).exists():
                tokenizer = cls.gpt2(path / VOCABULARY, path / MERGES)
            else:
                tokenizer = cls(Rust.from_str(file.read_text("utf-8")))
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
        """`ValueError` where a model with this many ids has another tokenizer."""
        if vocab_size != self.vocab_size:
            raise ValueError(
                f"the tokenizer{where} has {self.vocab_size} ids, the model {vocab_size}: they don't belong "
                f"together; give the tokenizer that the model was trained with"
            )

    @cached_property
    def record(self) -> dict[str, str]:
        """For the config.json of a model: what distinguishes this tokenizer from all that give other ids."""
        tokens = sorted(vocabulary := self.rust.get_vocab(), key=vocabulary.__getitem__)
        merges = json.loads(self.rust.to_str())["model"].get("merges")
        return {RECORD: digest([tokens, merges, self.slowly(SAMPLE)])}

    def check_model(self, directory: Path, where: str = "") -> None:
        """`ValueError` where the model in a directory tells that it was saved with another tokenizer."""
        path = directory / CONFIG
        told = read_json(path) if path.exists() else None
        if isinstance(told, dict) and RECORD in told and told[RECORD] != self.record[RECORD]:
            raise ValueError(
                f"the tokenizer{where} gives other ids than the one that the model in {directory} was saved with "
                f"({RECORD} {self.record[RECORD][:12]} here, {told[RECORD]!s:.12} in its {CONFIG}); give that one"
            )

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`, which `transformers.PreTrainedTokenizerFast` reads too."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / FILE).write_text(self.rust.to_str(pretty=False), "utf-8")

    def encode(self, text: str, allow_end_of_text: bool = False) -> list[int]:
        """Ids of a text; `ValueError` for a lone surrogate.

        `<|endoftext|>` in it is text like any other, unless allowed: then it is the end-of-text, which text from
        outside must not be able to write.
        """
        parts = text.split(END_OF_TEXT) if allow_end_of_text else [text]
        ids = self.encode_array(parts[0]).tolist()
        for part in parts[1:]:
            ids += [self.end_of_text, *self.encode_array(part).tolist()]
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [self.encode(text) for text in texts]

    def encode_array(self, text: str) -> np.ndarray:
        """(ids,) uint32 ids of a text; `ValueError` for a lone surrogate."""
        [text] = valid([text])
        if self.fast is not None and len(text) <= SHORT:
            return self.fast.encode_to_numpy(text, disallowed_special=())
        return np.array(self.slowly(text), dtype=np.uint32)

    def slowly(self, text: str) -> list[int]:
        """Ids of a text, by the merge list alone."""
        return self.rust.encode(text, add_special_tokens=False).ids

    @cached_property
    def fast(self) -> tiktoken.Encoding | None:
        """The same tokenizer in `tiktoken`, several times as fast; None where it might give other ids."""
        ranks = byte_ranks(self.rust)
        return (
            tiktoken.Encoding("byte-level", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
            if ranks
            else None
        )

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id stands for: bytes that are UTF-8 together, if not alone."""
        letters = byte_letters()
        tokens = sorted(vocabulary := self.rust.get_vocab(), key=vocabulary.__getitem__)
        return [bytes(letters[c] for c in t) if letters.keys() >= set(t) else t.encode() for t in tokens]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids: of all that `encode` gives, the text that it was.

        Bytes that are no UTF-8 become U+FFFD. `ValueError` for ids out of range.
        """
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            strange = min(ids) if min(ids) < 0 else max(ids)
            raise ValueError(
                f"id {strange} is not among the tokenizer's, 0 to {self.vocab_size - 1}; are they another one's?"
            )
        return self.rust.decode(ids, skip_special_tokens=False)


def valid(texts: Iterable[str]) -> Iterator[str]:
    """The texts; `ValueError` where one can't be UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"a lone surrogate {text[error.start]!a} at character {error.start}; remove it") from None
        yield text


def byte_ranks(rust: Rust) -> dict[bytes, int] | None:
    """Bytes of each token and its id, for `tiktoken`; None where merging by id could differ from the merge list.

    `tiktoken` joins two neighbours when their concatenation is a token, the lowest id first; BPE joins them when the
    pair is in the list, the first first. These agree if every merge makes a token of its own, in the order of ids,
    and every token's bytes alone become that token. (Where a pair outside the list with a token's bytes came up in
    some text, the same would come up, and stay, when the token's bytes alone are encoded: up to then nothing
    has been joined across their ends.)
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


def byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in GPT-2's vocabulary, and the byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
