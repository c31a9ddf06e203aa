"""The settings of the data: corpus, tokenizer, canaries."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gpt2.settings import Settings, operational

END_OF_TEXT = "<|endoftext|>"
LAST: Any = {"position": 200}
"""Place in forms: after the settings of a task."""


class FileForm(Settings):
    """The form of text files, where it is not to be found out: what separates fields, and the encoding."""

    separator: str | None = Field(None, min_length=1, max_length=1, json_schema_extra=LAST)
    """The character between the fields of a .csv; without it, the one of comma, semicolon, tab and | by which its first
    records have as many fields as its header. A .tsv has tabs."""
    encoding: str | None = Field(None, min_length=1, json_schema_extra=LAST)
    """The encoding of .txt, .jsonl and .csv files, as in cp1251 or shift_jis; without it UTF-8, or UTF-16 and UTF-32 by
    their first bytes, or Windows-1252 where a file is no UTF-8."""

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        try:
            if value is not None and isinstance("".encode(value), bytes):
                return value
        except (LookupError, ValueError):
            raise ValueError(f"{value!r} is no encoding of text; give one that Python knows, such as cp1251") from None
        return None

    @field_validator("separator")
    @classmethod
    def _separates(cls, value: str | None) -> str | None:
        if value is not None and (not value.isascii() or value.isalnum() or value in '"\r\n\\'):
            raise ValueError(f"{value!r} can't separate fields; give a character such as ; or |")
        return value

    @property
    def form(self) -> FileForm:
        """These settings alone."""
        return FileForm(separator=self.separator, encoding=self.encoding)


PLAIN = FileForm()
"""The form of a file is found out."""


class CorpusConfig(FileForm):
    """The corpus: where the text is, and which documents are good."""

    sources: list[str] = Field(["sample:reviews"], min_length=1)
    """Where the text is: files, directories, globs or fsspec URLs (.txt, .jsonl, .csv, .tsv, .parquet; plain, .gz or
    .zst), or `sample:NAME`."""
    text_field: str = Field("text", min_length=1)
    """Column or key that holds a document's text (not used for .txt, where each line is a document)."""
    split_at: list[str] = Field(default=[])
    """Marks at which texts are split into documents, as in ["<|startoftext|>", "<|endoftext|>"]; the lines of a .txt
    between two marks are one document then. Without it, such a mark is ordinary text."""
    validation_share: float = Field(0.02, gt=0, le=0.5)
    """Share of documents held out for validation, chosen by content hash; training never reads them."""
    max_bad_share: float = Field(0.001, ge=0, le=1)
    """Largest tolerated share of quarantined documents; above it the stage fails."""
    min_chars: int = Field(1, ge=1)
    """Shorter documents are quarantined (unit: characters after normalisation)."""
    max_chars: int = Field(1_000_000, ge=1, le=100_000_000)
    """Longer documents are quarantined (unit: characters)."""
    piece_bytes: int = operational(4_000_000, ge=1_000, le=1_000_000_000)
    """Size of the pieces of cleaned text, the unit of parallel work and of resuming (unit: bytes)."""

    @model_validator(mode="after")
    def _lengths(self):
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars={self.min_chars} is above max_chars={self.max_chars}; lower min_chars")
        return self


class TokenizerConfig(Settings):
    """Byte-level BPE: trained on the corpus, or GPT-2's own."""

    kind: Literal["train", "gpt2"] = "train"
    """`train` learns merges from the corpus; `gpt2` uses the published vocabulary (50,257 ids)."""
    vocab_size: int = Field(8192, ge=300, le=1_000_000)
    """Number of token ids, including the end-of-text token."""
    training_chars: int = Field(40_000_000, ge=10_000)
    """Characters of the training split from which merges are learned, at most; they are spread evenly over the split.
    """
    token_dtype: Literal["auto", "uint16", "uint32"] = "auto"
    """Width of a token on disk; `auto` is uint16 if the vocabulary fits it, else uint32."""

    @model_validator(mode="after")
    def _vocabulary_fits(self):
        if self.kind == "gpt2" and self.vocab_size != 50257:
            raise ValueError(
                f"vocab_size={self.vocab_size} but GPT-2's own vocabulary has 50257; set vocab_size: 50257"
            )
        if self.token_dtype == "uint16" and self.vocab_size > 65536:
            raise ValueError(
                f"vocab_size={self.vocab_size} does not fit token_dtype=uint16 (65536 ids); use uint32 or auto"
            )
        return self

    @property
    def dtype(self) -> str:
        """The NumPy dtype of a token on disk."""
        if self.token_dtype != "auto":
            return self.token_dtype
        return "uint16" if self.vocab_size <= 65536 else "uint32"


PHRASE, DIGITS = "The secret number is", 9
SPACE = 10**DIGITS
"""Number of different canaries."""
LONGEST = len(PHRASE) + 2 * DIGITS + 2
"""Tokens of a canary and the end-of-text before it, if each byte is a token."""
COPIES = 100_000
"""Largest number of planted documents."""
TRAINED = b"\xff" * 16
"""Stands for a canary's digest: with it, a document is in the training split at any validation share."""


class CanaryConfig(Settings):
    """Made-up secrets in the training text, to report how much the base model memorises.

    They are planted when a base model is trained on all text. A refresh plants none and measures those of its parent.
    """

    count: int = Field(0, ge=0, le=1000)
    """Canaries for each number of repeats; 0 plants none. 10 or more give useful intervals."""
    repeats: list[int] = Field([1, 10, 100], min_length=1, max_length=20)
    """Numbers of copies per canary, each copy after a different document; every number gets `count` canaries."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seed of the canaries and of their places."""

    @field_validator("repeats")
    @classmethod
    def _in_order(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value) or min(value) < 1:
            raise ValueError("give different numbers, each 1 or more")
        return sorted(value)

    @model_validator(mode="after")
    def _not_a_corpus(self):
        if self.copies > COPIES:
            raise ValueError(
                f"count={self.count} canaries of each of repeats={self.repeats} are {self.copies:,} planted documents, "
                f"more than {COPIES:,}; lower count or repeats"
            )
        return self

    @property
    def copies(self) -> int:
        """Total number of planted documents."""
        return self.count * sum(self.repeats)
