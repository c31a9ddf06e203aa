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

from gpt2.config import END_OF_TEXT

FILE = "tokenizer.json"
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
"""GPT-2's words (openai/gpt-2, `encoder.py`), without needless backtracking."""
SHORT = 100_000  # characters; on white space ten times as long tiktoken's regular expressions overflow their stack


class Tokenizer:
    """Text to ids and back, without loss. The last id is the end-of-text, which user text never becomes."""

    def __init__(self, rust: Rust):
        self.rust = rust
        self.vocab_size = rust.get_vocab_size()
        end = rust.token_to_id(END_OF_TEXT)
        if end is None:
            raise ValueError(f"the tokenizer has no {END_OF_TEXT}; it is not a GPT-2 tokenizer")
        self.end_of_text: int = end
        rust.encode_special_tokens = True  # `<|endoftext|>` in a document is text

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
        """GPT-2's tokenizer from its published `encoder.json` and `vocab.bpe`."""
        rust = Rust(BPE.from_file(str(vocabulary), str(merges)))
        rust.pre_tokenizer = ByteLevel(add_prefix_space=False)
        rust.decoder = ByteLevelDecoder()
        rust.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        return cls(rust)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """From a `tokenizer.json`, or a directory that holds one."""
        path = path / FILE if path.is_dir() else path
        try:
            return cls(Rust.from_str(path.read_text("utf-8")))
        except FileNotFoundError:
            raise ValueError(f"{path} is missing; give a directory with {FILE}") from None
        except Exception as error:  # the Rust library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer: {error}") from None

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json`, which `transformers.PreTrainedTokenizerFast` reads too."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / FILE).write_text(self.rust.to_str(pretty=False), "utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of a text; `ValueError` for a lone surrogate."""
        return self.encode_array(text).tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [self.encode(text) for text in texts]

    def encode_array(self, text: str) -> np.ndarray:
        """(ids,) uint32 ids of a text; `ValueError` for a lone surrogate."""
        [text] = valid([text])
        if self.fast is not None and len(text) <= SHORT:
            return self.fast.encode_to_numpy(text, disallowed_special=())
        return np.array(self.rust.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    @cached_property
    def fast(self) -> tiktoken.Encoding | None:
        """The same tokenizer in `tiktoken`, several times as fast; None where it might give other ids."""
        ranks = byte_ranks(self.rust)
        return (
            tiktoken.Encoding("byte-level", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
            if ranks
            else None
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return self.rust.decode(list(ids), skip_special_tokens=False)


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
