"""Questions to answers and replies; a reply that fails a check is withheld."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.data.text import length, unfinished, words

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor


REPLY_TOKENS = 48


class SupportPredictor:
    """Finds answers to questions and writes replies."""

    input_example = ("My printer is not printing.",)

    def __init__(self, directory: Path):
        import pandas as pd

        from gpt2 import weights
        from gpt2.data.near_duplicates import shingles
        from gpt2.data.tokenizer import Tokenizer
        from gpt2.model.hardware import ready
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
        ready(self.module, fixed=True)
        facts = model_files.read_task(directory)
        self.reader, self.search = PromptEncoder(self.tokenizer, facts["context"]), BM25(self.answers)
        self.weights: list[float] = facts.get("weights", [1.0, 0.0])
        """Weights of the cosine and of BM25."""
        self.embeddings = self.embed(self.reader.answers(self.answers))

    def embed(self, rows: list[list[int]]) -> Tensor:
        """Return (N, width) unit vectors of encoded texts."""
        import torch

        from gpt2.model.hardware import at_once, device_of
        from gpt2.model.heads import pad

        step, device = at_once(self.module, 64), device_of(self.module)
        with torch.inference_mode():
            parts = [pad(rows[at : at + step], device=device) for at in range(0, len(rows), step)]
            return torch.cat([self.module.embed(*part) for part in parts])

    def parts(self, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return (questions, answers) cosines of embeddings, and BM25 scores."""
        cosines = self.embed(self.reader.questions(questions)) @ self.embeddings.T
        return cosines.double().cpu().numpy(), self.search.scores(questions)

    def scores(self, questions: Sequence[str]) -> np.ndarray:
        """Return (questions, answers) probabilities that an answer is the right one."""
        from scipy.special import softmax

        return softmax(sum(w * part for w, part in zip(self.weights, self.parts(questions), strict=True)), axis=1)

    def right(self, test: pd.DataFrame) -> list[list[int]]:
        """Return the indices of each row's right answers (`questions_of`), without answers unknown to the model."""
        index = {answer: i for i, answer in enumerate(self.answers)}
        return [[index[answer] for answer in dict.fromkeys(answers) if answer in index] for answers in test["answer"]]

    def lookup(self, question: str) -> int | None:
        """Return the answer of a known question that is a near-duplicate (`gpt2.data.near_duplicates`), or None."""
        from gpt2.data.near_duplicates import LIKE, jaccard, shingles

        own = shingles(question)
        likeness, place = max((jaccard(own, known), -n) for n, (known, _) in enumerate(self.known))
        return self.known[-place][1] if likeness >= LIKE else None

    def scores_with_lookup(self, questions: Sequence[str]) -> np.ndarray:
        """Return (questions, answers) probabilities: the `scores`, but 1 for the answer of a known question."""
        scores = self.scores(questions)
        for row, question in zip(scores, questions, strict=True):
            if (answer := self.lookup(question)) is not None:
                row[:] = 0
                row[answer] = 1
        return scores

    def replies(self, questions: Sequence[str], best: Sequence[int], most: int = REPLY_TOKENS) -> list[tuple[str, str]]:
        """Return (reply, why it is withheld, or "") for each question, written from its `best` answer."""
        from gpt2.generation.generate import generate

        if not questions:
            return []
        encoded, known = self.reader.questions(questions), self.reader.known([self.answers[i] for i in best])
        prompts = [self.reader.prompt(q, k) for q, k in zip(encoded, known, strict=True)]
        room = self.module.model.config.n_positions - max(map(len, prompts))
        limit = min(most, room)
        generated = generate(self.module.model, self.tokenizer.end_of_text, prompts, limit, temperature=0)
        texts = [(self.tokenizer.decode(ids).strip(), len(ids) < limit) for ids in generated]
        return [
            (text, withheld(text, ended, q, self.answers[i], self.answers))
            for (text, ended), q, i in zip(texts, questions, best, strict=True)
        ]

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame:
        """Return a row per question: `answer`, `score`, `reply` and `withheld`, why there is no reply.

        `params`: `abstain_below`, the probability below which answer and reply are ""; `max_tokens` of a reply, 0 for
        none. The answer of a known question has the score 1. Raises `ValueError` for an input that is not a text.
        """
        import pandas as pd

        from gpt2.tasks.task import checked_texts

        questions = checked_texts(inputs)
        least, most = float(params.get("abstain_below", 0.0)), int(params.get("max_tokens", REPLY_TOKENS))
        if not 0 <= least <= 1 or most < 0:
            raise ValueError(f"abstain_below={least:g}, max_tokens={most}; give 0 to 1, and 0 or more")
        if not questions:
            return pd.DataFrame(columns=["answer", "score", "reply", "withheld"])
        best = self.scores_with_lookup(questions)
        chosen, score = best.argmax(1).tolist(), best.max(1).tolist()
        fits = [i for i in range(len(questions)) if score[i] >= least]
        replies = [("", "nothing fits")] * len(questions)
        if most:
            written = self.replies([questions[i] for i in fits], [chosen[i] for i in fits], most)
            for i, reply in zip(fits, written, strict=True):
                replies[i] = reply
        answers = [self.answers[answer] if i in set(fits) else "" for i, answer in enumerate(chosen)]
        shown = ["" if reason else reply for reply, reason in replies]
        reasons = [reason for _, reason in replies]
        return pd.DataFrame({"answer": answers, "score": score, "reply": shown, "withheld": reasons})


COPIED = 5
"""Length (words) of a run shared only with another answer that counts as copied from it; 3 characters of a script
without spaces are as long as 2 words."""
SHORT = 4
"""Fewest words of a reply, unless the answer itself is shorter."""


def withheld(reply: str, ended: bool, question: str, answer: str, answers: Sequence[str]) -> str:
    """Return why a reply is withheld; "" if it is shown.

    It is withheld if it is short or unfinished, or if it copies another answer. It is also withheld if less than half
    of its words are in the question or in the answer that it was written from.
    """
    written, own = words(reply), words(answer)
    if reason := unfinished(written, ended, min(SHORT, length(own))):
        return reason
    ours, most = {*own, *words(question)}, round(COPIED * len(written) / length(written))
    others = runs(written, most) - runs(own, most) - runs(words(question), most)
    if others and any(others & runs(words(other), most) for other in answers if other != answer):
        return "it copies another answer"
    return "" if sum(w in ours for w in written) >= len(written) / 2 else "it strays from the answer"


def runs(text: Sequence[str], most: int) -> set[tuple[str, ...]]:
    """Return all runs of `most` words of a text, or the whole text if it is shorter."""
    size = min(most, len(text))
    return {tuple(text[i : i + size]) for i in range(len(text) - size + 1)} if size else set()
