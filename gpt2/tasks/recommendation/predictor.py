"""Histories to rankings of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.tasks.recommendation.dataset import ITEM_TOKENS, log_popularity, texts

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from gpt2.tasks.recommendation.hybrid import Hybrid


class RecommendationPredictor:
    """Ranks the catalogue, or given candidates, for histories."""

    def __init__(self, directory: Path):
        import pandas as pd

        from gpt2 import weights
        from gpt2.data.tokenizer import Tokenizer
        from gpt2.model.hardware import ready
        from gpt2.store import model_files
        from gpt2.tasks.recommendation.dataset import Recommender
        from gpt2.tasks.recommendation.hybrid import Hybrid
        from gpt2.weights import tensors

        items = pd.read_json(directory / "items.jsonl", lines=True, dtype={"item": str, "title": str, "text": str})
        self.titles, self.ids = items["title"].tolist(), items["item"].tolist()
        self.input_example = [{"history": self.titles[:2], "candidates": self.titles[2:5]}]
        self.index = {title: i for i, title in reversed(list(enumerate(self.titles)))}  # the first of equal titles
        self.index |= {item: i for i, item in enumerate(items["item"]) if item not in self.index}
        trunk = weights.load(directory)
        self.tokenizer = Tokenizer.load(directory, trunk.config.vocab_size)
        saved = model_files.read_task(directory)
        self.item_tokens: int = saved.get("item_tokens", ITEM_TOKENS)
        self.module = Recommender(trunk, texts(items, self.tokenizer, self.item_tokens), log_popularity(items))
        self.context = saved["context"]
        path = directory / "head.safetensors"
        head, own = tensors.read(path), self.module.state_dict()
        tensors.check(path, head, {name: value for name, value in own.items() if not name.startswith("model.")})
        self.module.load_state_dict(head, strict=False)
        ready(self.module, fixed=True)
        self.hybrid: Hybrid | None = None
        if "weights" in saved:  # older models rank by text and popularity alone
            self.hybrid = Hybrid.load(directory, saved["weights"], len(items))
        self.read()

    def read(self) -> None:
        """Compute the items' features and embeddings, once for all rankings."""
        import torch

        with torch.inference_mode():
            self.features = self.module.features()
            self.embeddings = self.module.embeddings(self.features)

    def retold(self, items: pd.DataFrame, change: Callable[[str], str]) -> RecommendationPredictor:
        """Return a copy of this predictor whose item descriptions are rewritten by `change`."""
        from gpt2.model.hardware import ready
        from gpt2.tasks.recommendation.dataset import Recommender

        rewritten = texts(items, self.tokenizer, self.item_tokens, change)
        other = copy(self)
        other.module = Recommender(self.module.model, rewritten, self.module.log_popularity)
        other.module.load_state_dict(self.module.state_dict())
        ready(other.module, fixed=True)
        other.read()
        return other

    def scores(self, histories: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """Return (histories, items) scores of text and choices combined."""
        return self.with_choices(self.by_text(histories), histories)

    def with_choices(self, by_text: np.ndarray, histories: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """Return the (histories, items) scores of `by_text` combined with those of the users' choices.

        See `gpt2.tasks.recommendation.hybrid`.
        """
        return by_text if self.hybrid is None else self.hybrid.scores(by_text, histories)

    def score_formula(self) -> list[str]:
        """Return the formula of the scores in words, as one line."""
        if self.hybrid is None:
            return ["a score is the model's, from texts and popularity"]
        parts = ", ".join(f"{value:+.3g} x {name}" for name, value in self.hybrid.weights.items())
        return [f"a score is {parts}; the weights are fitted on the validation choices"]

    def by_text(self, histories: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """Return (histories, items) scores of the model alone: log-probabilities up to a constant.

        Only the latest items of a long history count, as many as in training. An empty history is ranked by popularity.
        """
        import numpy as np
        import torch

        from gpt2.model.hardware import device_of
        from gpt2.model.heads import pack, pad
        from gpt2.tasks.recommendation.hybrid import parts

        out, device = [], device_of(self.module)
        with torch.inference_mode():
            for some in parts(len(histories), len(self.titles)):
                rows = [[int(i) for i in h[-self.context :]] for h in histories[some]]
                ids, lengths = pad(rows, device=device)
                items, packed = pack(ids, lengths.clamp_min(1))
                last = self.module.tastes(items, packed, self.features)[packed.last] * (lengths > 0)[:, None]
                out.append(self.module.scores(last, self.embeddings).cpu().numpy())
        return np.concatenate(out)

    def top(
        self, scores: np.ndarray, seen: Sequence[int] | np.ndarray, k: int, among: Sequence[int] | None = None
    ) -> list[int]:
        """Return the k best unseen items of all, or the k best of the items `among`."""
        import numpy as np

        allowed = np.full(len(scores), -np.inf)
        chosen = np.arange(len(scores)) if among is None else np.asarray(among, dtype=int)
        allowed[chosen] = scores[chosen]
        if among is None:
            allowed[np.asarray(seen, dtype=int)] = -np.inf
        order = np.argsort(-allowed, kind="stable")[:k]
        return [int(i) for i in order if np.isfinite(allowed[i])]

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame:
        """Return a row per input: `ranking` (titles, best first) and `scores`.

        An input is {"history": [...], "candidates": [...]} of titles or item ids. Without candidates they are the
        catalogue minus the history. `params`: `top_k`. Raises `ValueError` for an unknown item.
        """
        import pandas as pd

        records = [inputs] if isinstance(inputs, Mapping) else list(inputs)
        top_k = int(params.get("top_k", 10))
        if top_k < 1:
            raise ValueError(f"top_k={top_k}; give 1 or more")
        histories = [self.lookup(record, "history", n) for n, record in enumerate(records)]
        candidates = [self.lookup(record, "candidates", n) for n, record in enumerate(records)]
        scores = self.scores([h or [] for h in histories])
        rows = []
        for row, history, among in zip(scores, histories, candidates, strict=True):
            best = self.top(row, history or [], top_k, among)
            rows.append({"ranking": [self.titles[i] for i in best], "scores": [float(row[i]) for i in best]})
        return pd.DataFrame(rows)

    def lookup(self, record: Any, name: str, number: int) -> list[int] | None:
        """Return the indices of the items in a record's field, given by title or id; None if it is missing."""
        if not isinstance(record, Mapping) or "history" not in record:
            raise ValueError(f'input {number} is {record!r}; give {{"history": [titles]}}')
        values = record.get(name)
        if values is None or isinstance(values, float):  # a missing cell of a table
            return None
        unknown = [v for v in values if str(v) not in self.index]
        if unknown:
            raise ValueError(f"input {number}: {name} has {unknown[0]!r}, which is not in the catalogue; leave it out")
        return [self.index[str(v)] for v in values]
