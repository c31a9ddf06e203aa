"""Byte-level BPE (Radford et al. 2019): GPT-2's own vocabulary, or one learned from a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Rust
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from gpt2.config import END_OF_TEXT

FILE = "tokenizer.json"


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
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [e.ids for e in self.rust.encode_batch_fast(list(valid(texts)), add_special_tokens=False)]

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
