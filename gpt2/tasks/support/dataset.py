"""A knowledge file to questions with answers; prompts and batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gpt2.data.tokenizer import Tokenizer
from gpt2.model.heads import pad

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.tasks.support.config import SupportSettings


def questions_of(pairs: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return a row per group of a split: its first `question`, and `answer`, the list of its right answers."""
    chosen = pairs[pairs["split"] == split].groupby("group", sort=True)
    return chosen.agg({"question": "first", "answer": list})


def read_source(source: str | Path, settings: SupportSettings) -> pd.DataFrame:
    """Return the questions and answers of tables, or of a folder of conversations in .yml files (chatterbot-corpus).

    Of a conversation they are the first two lines. Raises `ValueError` if there are none.
    """
    import pandas as pd
    import yaml

    from gpt2.data.tables import cell, missing, read_table

    if conversations := sorted(Path(source).glob("*.yml")):
        files = [yaml.safe_load(path.read_text("utf-8"))["conversations"] for path in conversations]
        pairs = [(c[0], c[1]) for file in files for c in file if isinstance(c, list) and len(c) > 1]
        if not pairs:
            raise ValueError(f"{source} has no conversations in its .yml files; give .csv, .jsonl or .parquet files")
        return pd.DataFrame(pairs, columns=["question", "answer"])
    question, answer = settings.question_field, settings.answer_field
    table = read_table(source, settings.form, {question, answer})
    if fault := missing(table, {"question_field": question, "answer_field": answer}):
        raise ValueError(f"{source} has {fault}")
    return pd.DataFrame({"question": table[question].map(cell), "answer": table[answer].map(cell)})


KNOWN, REPLY = "\nKnown answer:", "\nReply:"
"""Separators before the known answer and before the reply."""


class PromptEncoder:
    """Encodes questions, known answers and replies as ids.

    A question gets a quarter of the context, a known answer and a reply three eighths each.
    """

    def __init__(self, tokenizer: Tokenizer, context: int):
        """Raises `ValueError` if the context is too short for an answer."""
        self.tokenizer, self.context = tokenizer, context
        self.marks = [tokenizer.encode(KNOWN), tokenizer.encode(REPLY)]
        self.room = 3 * context // 8 - max(map(len, self.marks)) - 1
        """Most tokens of a known answer, and of a reply in training."""
        if self.room < 1:
            raise ValueError(f"context={context} leaves no room for an answer; set 64 or more")

    def plain(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        """Return the ids of texts to embed: lower-cased, and with each word encoded as inside a text."""
        encoded = self.tokenizer.encode_batch([" " + " ".join(text.lower().split()) for text in texts])
        return [ids[:limit] or [self.tokenizer.end_of_text] for ids in encoded]

    def questions(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of questions to embed."""
        return self.plain(texts, max(1, self.context // 4))

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of answers to embed."""
        return self.plain(texts, self.context // 2)

    def known(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of the known answers from which replies are written."""
        return [ids[: self.room] for ids in self.tokenizer.encode_batch([" " + text for text in texts])]

    def replies(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of target replies with end-of-text, cut to the room for them."""
        end = self.tokenizer.end_of_text
        return [[*ids, end][: self.room + 1] for ids in self.tokenizer.encode_batch([" " + text for text in texts])]

    def prompt(self, question: list[int], known: list[int]) -> list[int]:
        """Return the ids of a reply's prompt: question and known answer."""
        return [*question, *self.marks[0], *known, *self.marks[1]]


class PairDataset:
    """Questions of a split, each with its right answer and wrong ones.

    A batch is `ids` (B, T) of question, known answer and reply; `lengths`, `question_lengths` and `reply_lengths`, each
    (B,); `answers` (A, S) and `answer_lengths` (A,); `right` (B,), the row of the right answer; and `candidates` (B,
    A), the answers that compete. The wrong answers are drawn by the seed and equal on all ranks at a step. So a
    question's loss does not depend on the rest of its batch, as it would with in-batch negatives.
    """

    def __init__(self, pairs: pd.DataFrame, split: str, reader: PromptEncoder, negatives: int):
        """`pairs` have question, answer, group and split; wrong answers are drawn from all of them."""
        texts = pairs["answer"].unique().tolist()
        index = {text: i for i, text in enumerate(texts)}
        own = pairs[pairs["split"] == split]
        alike = pairs.groupby("group")["answer"].agg(lambda answers: {index[a] for a in answers})
        self.right = [index[a] for a in own["answer"]]
        self.also_right: list[set[int]] = [alike[g] for g in own["group"]]
        self.answers, self.known, self.replies = reader.answers(texts), reader.known(texts), reader.replies(texts)
        self.questions, self.reader, self.negatives = reader.questions(own["question"].tolist()), reader, negatives

    def __len__(self) -> int:
        return len(self.questions)

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        count = min(self.negatives, len(self.answers))
        drawn = np.random.default_rng(seed).choice(len(self.answers), count, replace=False).tolist()
        pool = [*drawn, *sorted({self.right[i] for i in indices} - set(drawn))]
        place = {answer: row for row, answer in enumerate(pool)}
        candidates = torch.zeros(len(indices), len(pool), dtype=torch.bool)
        replies, rows = [self.replies[self.right[i]] for i in indices], []
        for row, i in enumerate(indices):
            candidates[row, : len(drawn)] = torch.tensor([a not in self.also_right[i] for a in drawn])
            candidates[row, place[self.right[i]]] = True
            rows.append([*self.reader.prompt(self.questions[i], self.known[self.right[i]]), *replies[row]])
        ids, lengths = pad(rows)
        answers, answer_lengths = pad([self.answers[a] for a in pool])
        return {
            "ids": ids, "lengths": lengths, "question_lengths": torch.tensor([len(self.questions[i]) for i in indices]),
            "reply_lengths": torch.tensor([len(reply) for reply in replies]),
            "answers": answers, "answer_lengths": answer_lengths,
            "right": torch.tensor([place[self.right[i]] for i in indices]), "candidates": candidates,
        }  # fmt: skip
