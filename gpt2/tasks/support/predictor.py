"""Questions to answers and replies; a reply that fails a check is withheld."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.data.text import unfinished, words

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor


REPLY_TOKENS = 48


class SupportPredictor:
    """Questions to answers and replies."""

    input_example = ("My printer is not printing.",)

    def __init__(self, directory: Path):
        import pandas as pd

        from gpt2 import weights
        from gpt2.data.near_duplicates import shingles
        from gpt2.data.tokenizer import Tokenizer
        from gpt2.store import model_files
        from gpt2.tasks.support.dataset import PromptEncoder
        from gpt2.tasks.support.retriever import BM25, Retriever, rarity
        from gpt2.weights import tensors

        with open(directory / "knowledge.jsonl", encoding="utf-8") as lines:
            pairs = pd.DataFrame([json.loads(line) for line in lines])
        self.answers: list[str] = pairs["answer"].unique().tolist()
        index = {answer: i for i, answer in enumerate(self.answers)}
        self.known = [(shingles(q), index[a]) for q, a in zip(pairs["question"], pairs["answer"], strict=True)]
        trunk = weights.load(directory)
        self.tokenizer = Tokenizer.load(directory, trunk.config.vocab_size)
        self.module = Retriever(trunk, rarity(self.answers, self.tokenizer, trunk.config.vocab_size), 0.0)
        path = directory / "head.safetensors"
        head, own = tensors.read(path), dict(self.module.named_parameters())
        tensors.check(path, head, {name: value for name, value in own.items() if not name.startswith("model.")})
        self.module.load_state_dict(head, strict=False)
        self.module.eval()
        facts = model_files.read_task(directory)
        self.reader, self.search = PromptEncoder(self.tokenizer, facts["context"]), BM25(self.answers)
        self.weights: list[float] = facts.get("weights", [1.0, 0.0])
        """Of the cosine and of BM25."""
        self.embeddings = self.embed(self.reader.answers(self.answers))

    def embed(self, rows: list[list[int]]) -> Tensor:
        """(N, width) unit vectors of encoded texts."""
        import torch

        from gpt2.model.heads import pad

        with torch.inference_mode():
            return torch.cat([self.module.embed(*pad(rows[at : at + 64])) for at in range(0, len(rows), 64)])

    def parts(self, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(questions, answers): cosines of embeddings, and BM25."""
        cosines = self.embed(self.reader.questions(questions)) @ self.embeddings.T
        return cosines.double().numpy(), self.search.scores(questions)

    def scores(self, questions: Sequence[str]) -> np.ndarray:
        """(questions, answers) probabilities that an answer is the right one."""
        from scipy.special import softmax

        return softmax(sum(w * part for w, part in zip(self.weights, self.parts(questions), strict=True)), axis=1)

    def right(self, test: pd.DataFrame) -> list[list[int]]:
        """The right answers' indices of each row of `questions_of`; none of answers that came after the model."""
        index = {answer: i for i, answer in enumerate(self.answers)}
        return [[index[answer] for answer in dict.fromkeys(answers) if answer in index] for answers in test["answer"]]

    def lookup(self, question: str) -> int | None:
        """The answer of a known question that says nearly the same, as `gpt2.data.near_duplicates` has it."""
        from gpt2.data.near_duplicates import LIKE, jaccard, shingles

        asked = shingles(question)
        likeness, place = max((jaccard(asked, known), -n) for n, (known, _) in enumerate(self.known))
        return self.known[-place][1] if likeness >= LIKE else None

    def looked_up(self, questions: Sequence[str]) -> np.ndarray:
        """(questions, answers) probabilities: the `scores`, but 1 for the answer of a known question."""
        found = self.scores(questions)
        for row, question in zip(found, questions, strict=True):
            if (answer := self.lookup(question)) is not None:
                row[:] = 0
                row[answer] = 1
        return found

    def replies(self, questions: Sequence[str], best: Sequence[int], most: int = REPLY_TOKENS) -> list[tuple[str, str]]:
        """(reply, why it is withheld, "" where it is not) to each question from the answer that was found."""
        from gpt2.generation.generate import generate

        if not questions:
            return []
        asked, known = self.reader.questions(questions), self.reader.known([self.answers[i] for i in best])
        prompts = [self.reader.prompt(q, k) for q, k in zip(asked, known, strict=True)]
        room = self.module.model.config.n_positions - max(map(len, prompts))
        limit = min(most, room)
        found = generate(self.module.model, self.tokenizer.end_of_text, prompts, limit, temperature=0)
        texts = [(self.tokenizer.decode(ids).strip(), len(ids) < limit) for ids in found]
        return [
            (text, withheld(text, ended, q, self.answers[i], self.answers))
            for (text, ended), q, i in zip(texts, questions, best, strict=True)
        ]

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame:
        """A row per question: `answer`, `score`, `reply` and `withheld`, why there is no reply.

        `params`: `abstain_below`, the probability below which answer and reply are "": nothing fits; `max_tokens` of a
        reply, 0 for none. A known question's answer has the score 1. `ValueError` for what is no text.
        """
        import pandas as pd

        from gpt2.tasks.task import checked_texts

        questions = checked_texts(inputs)
        least, most = float(params.get("abstain_below", 0.0)), int(params.get("max_tokens", REPLY_TOKENS))
        if not 0 <= least <= 1 or most < 0:
            raise ValueError(f"abstain_below={least:g}, max_tokens={most}; give 0 to 1, and 0 or more")
        if not questions:
            return pd.DataFrame(columns=["answer", "score", "reply", "withheld"])
        best = self.looked_up(questions)
        chosen, score = best.argmax(1).tolist(), best.max(1).tolist()
        fits = [i for i in range(len(questions)) if score[i] >= least]
        replies = [("", "nothing fits")] * len(questions)
        if most:
            found = self.replies([questions[i] for i in fits], [chosen[i] for i in fits], most)
            for i, reply in zip(fits, found, strict=True):
                replies[i] = reply
        answers = [self.answers[answer] if i in set(fits) else "" for i, answer in enumerate(chosen)]
        shown = ["" if reason else reply for reply, reason in replies]
        reasons = [reason for _, reason in replies]
        return pd.DataFrame({"answer": answers, "score": score, "reply": shown, "withheld": reasons})


COPIED = 5
"""So many words in a row that only another answer has are copied from it."""
SHORT = 4
"""A reply of fewer words says nothing, unless the answer has no more."""


def withheld(reply: str, ended: bool, question: str, answer: str, answers: Sequence[str]) -> str:
    """Why a reply is not shown, "" where it is: it is empty or short, has no end, says what only other answers
    say, or says less than half with the words of the question and of the answer that it was written from."""
    said, own = words(reply), words(answer)
    if reason := unfinished(said, ended, min(SHORT, len(own))):
        return reason
    ours = {*own, *words(question)}
    others = runs(said) - runs(own) - runs(words(question))
    if others and any(others & runs(words(other)) for other in answers if other != answer):
        return "it copies another answer"
    return "" if sum(w in ours for w in said) >= len(said) / 2 else "it strays from the answer"


def runs(text: Sequence[str]) -> set[tuple[str, ...]]:
    """All runs of `COPIED` words; of a shorter text the whole."""
    size = min(COPIED, len(text))
    return {tuple(text[i : i + size]) for i in range(len(text) - size + 1)} if size else set()
