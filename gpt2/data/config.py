"""The settings of the data: corpus, tokenizer, canaries."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from gpt2.settings import Settings, operational

END_OF_TEXT = "<|endoftext|>"


class CorpusConfig(Settings):
    """Documents in: where the text is, and what counts as a good document."""

    sources: list[str] = Field(["sample:reviews"], min_length=1)
    """Files, directories, globs or fsspec URLs (.txt, .jsonl, .csv, .parquet; plain, .gz or .zst), or `sample:NAME`."""
    text_field: str = Field("text", min_length=1)
    """The column or key that holds a document's text (not used for .txt, where a line is a document)."""
    validation_share: float = Field(0.02, gt=0, le=0.5)
    """Share of documents, chosen by content hash, that training never sees."""
    max_bad_share: float = Field(0.001, ge=0, le=1)
    """Largest tolerated share of quarantined documents; more stops the stage."""
    min_chars: int = Field(1, ge=1)
    """Shorter documents are quarantined (unit: characters after normalisation)."""
    max_chars: int = Field(1_000_000, ge=1, le=100_000_000)
    """Longer documents are quarantined (unit: characters)."""
    piece_bytes: int = operational(4_000_000, ge=1_000, le=1_000_000_000)
    """Size of the pieces that the cleaned text is cut into, the unit of parallel work and of resuming."""

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
    """Number of token ids, the end-of-text token included."""
    training_chars: int = Field(40_000_000, ge=10_000)
    """At most this many characters of the training split, spread evenly over it, are used to learn merges."""
    token_dtype: Literal["auto", "uint16", "uint32"] = "auto"
    """Width of a token on disk; `auto` takes uint16 where the vocabulary fits it."""

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
"""How many texts there are to draw from."""
LONGEST = len(PHRASE) + 2 * DIGITS + 2
"""Tokens of a canary and the end-of-text before it, where each is a byte."""
COPIES = 100_000
"""Planted documents, at most."""
TRAINED = b"\xff" * 16
"""In place of a canary's digest: it belongs to the training split, whatever share is held out."""


class CanaryConfig(Settings):
    """Made-up secrets in the training text, by which the base model's report says how much it learns by heart.

    They are planted when a base model is trained on all text; a refresh plants none and measures those of its parent.
    """

    count: int = Field(0, ge=0, le=1000)
    """Canaries for each number of repeats; with 0 nothing is planted. 10 or more give useful intervals."""
    repeats: list[int] = Field([1, 10, 100], min_length=1, max_length=20)
    """How often each canary is planted, after that many different documents: as many canaries for each number."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Decides the canaries and their places."""

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
        """Documents that are planted."""
        return self.count * sum(self.repeats)
