"""Recommendation by text: given what a user liked, in order, rank what comes next."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from gpt2 import catalogue
from gpt2.catalogue import TABLES, CatalogueFiles, sentence
from gpt2.config import OptimizerConfig, TrainConfig
from gpt2.task import Task, TaskSettings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn

    from gpt2.evidence import Evidence
    from gpt2.hybrid import Hybrid
    from gpt2.model import GPT2
    from gpt2.tokenizer import Tokenizer

ITEM_TOKENS = 32
"""What is told of an item in models that were saved without saying to how many tokens it is cut."""


class RecommendationSettings(CatalogueFiles, TaskSettings):
    """Recommendation: who saw what, when, and what the items are called."""

    source: str = Field("sample:movielens", min_length=1)
    """The file of items (.csv, .jsonl, .parquet): id, text and attributes, with `interactions` beside it; or a folder
    with `items.*` and `interactions.*`; or `sample:movielens`."""
    train: TrainConfig = TrainConfig(
        epochs=4,
        batch_size=32,
        micro_batch_size=16,
        context=50,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, schedule="cosine", final_ratio=0.0),
        eval_samples=128,
        checkpoint_every=50,
        log_every=10,
    )
    """Fine-tuning: length, batches, rates. The context counts items: the latest of a history."""

    @model_validator(mode="after")
    def _files(self):
        if self.interactions is None and Path(self.source).suffix in TABLES:
            raise ValueError(f"source={self.source!r} is a file of items; set interactions to the file of interactions")
        if self.interactions is not None and self.source.startswith("sample:"):
            raise ValueError(
                f"interactions={self.interactions!r} are not the sample's; set source to your file of items"
            )
        return self

    def sources(self) -> dict[str, str]:
        return super().sources() | ({} if self.interactions is None else {"interactions": self.interactions})


class Recommendation(Task):
    """Rankings of a catalogue."""

    name = "recommendation"
    title = "Next item by text"
    primary = "ndcg_at_10"
    floor = "popularity"
    baselines = ("popularity", "item-kNN", "recent item-kNN", "EASE", "text alone")
    Settings = RecommendationSettings
    code: ClassVar[tuple[str, ...]] = (
        "gpt2.catalogue", "gpt2.catalogue_files", "gpt2.tables", "gpt2.baselines", "gpt2.hybrid", "gpt2.metrics",
    )  # fmt: skip
    report_code: ClassVar[tuple[str, ...]] = (
        "gpt2.slices", "gpt2.recommendation_report", "gpt2.recommending", "gpt2.reasons", "gpt2.search",
        "gpt2.behaviour", "gpt2.recommendation_behaviour",
    )  # fmt: skip
    params: ClassVar[Mapping[str, Any]] = {"top_k": 10}
    use = "Ranking the items of its catalogue, or candidates among them, by what a user has chosen before."
    limits = (
        "It knows the items of its catalogue only; a new one needs a new training.",
        "What was popular in its training data is favoured, and what few have chosen is rarely shown.",
        "It was measured on the last choice of each known user; what people do with recommendations is another thing.",
    )
    example: ClassVar[Any] = {"history": ["a title of the catalogue"]}

    def prepare(self, settings: RecommendationSettings, source: Path, out: Path) -> dict[str, Any]:
        """Write items.parquet, histories.parquet and catalogue.json; see `gpt2.catalogue.prepare`."""
        return catalogue.prepare(source, settings, out)

    def dataset(self, examples: Path, split: str, tokenizer: Tokenizer, context: int) -> HistoryDataset:
        histories, _ = load_examples(examples)
        if split == "validation":
            return HistoryDataset([h[:-1] for h in histories], context, last_only=True)
        return HistoryDataset([h[:-2] for h in histories], context)

    def samples(self, examples: Path, info: Mapping[str, Any], context: int) -> int:
        return len(HistoryDataset([h[:-2] for h in load_examples(examples)[0]], context))

    def module(self, model: GPT2, examples: Path, tokenizer: Tokenizer) -> nn.Module:
        from gpt2.heads import Recommender

        _, items = load_examples(examples)
        return Recommender(model, texts(items, tokenizer, facts_of(examples)["item_tokens"]), log_popularity(items))

    def save(self, module: Any, examples: Path, tokenizer: Tokenizer, context: int, out: Path) -> None:
        from safetensors.torch import save_file

        from gpt2 import hybrid, weights

        weights.save(module.model, out, tokenizer=tokenizer)
        histories, items = load_examples(examples)
        head = {n: p.detach().float().contiguous() for n, p in module.named_parameters() if not n.startswith("model.")}
        save_file(head, out / "head.safetensors")
        items.to_json(out / "items.jsonl", orient="records", lines=True, force_ascii=False)
        facts = {"context": context, **facts_of(examples)}
        weights.write_task(out, self.name, **facts)
        mixed = hybrid.fit(self.predictor(out).by_text, [h[:-1] for h in histories], items)
        mixed.save(out)
        weights.write_task(out, self.name, **facts | {"weights": dict(mixed.weights)})

    def predictor(self, directory: Path) -> RecommendationPredictor:
        return RecommendationPredictor(directory)

    def evaluate(self, directory: Path, examples: Path, out: Path) -> dict[str, Any]:
        import numpy as np
        import pandas as pd

        from gpt2 import baselines, behaviour, cost, metrics, plots, recommendation_behaviour, recommendation_report
        from gpt2.evidence import UNKNOWN

        histories, items = load_examples(examples)
        predictor = self.predictor(directory)
        other = None  # the catalogue may have changed since the model learned
        if items["item"].tolist() != predictor.ids:
            other = recommendation_report.Elsewhere(predictor, items["item"].tolist())
        test = np.array([h[-1] for h in histories])
        popular = baselines.popularity([h[:-2] for h in histories], len(items))
        disliked = load_disliked(examples)
        ranks = recommendation_report.ranks(other or predictor, histories, popular, disliked)
        facts = {
            "test_item": test,
            "history": [len(h) - 1 for h in histories],
            "popularity": popular[test].astype(int),
            **{f"rank_{n}": r for n, r in ranks.items()},
        }
        predictions = pd.DataFrame(facts)
        predictions.to_parquet(out / "predictions.parquet", index=False)
        ranked = {n: metrics.ranking(r) for n, r in ranks.items()}
        remarks = [other.remark()] if other else list(recommendation_behaviour.REMARKS)
        tables: dict[str, Any] = {}
        if other is None:
            some = recommendation_report.recommended(predictor, histories, items, ranks["model"], disliked)
            tested = recommendation_behaviour.suite(predictor, histories, items, disliked)
            tables = {"Recommendations, and why": some} | behaviour.tables(tested)
        return {
            "task": self.name,
            "title": self.title,
            "primary": {"name": self.primary, "higher_is_better": self.higher_is_better},
            "floor": self.floor,
            "metrics": ranked.pop("model"),
            "baselines": ranked,
            "counts": {"users": len(histories), "items": len(items), "never_seen": int((popular[test] == 0).sum())},
            UNKNOWN: other.unknown if other else 0,
            "remarks": remarks,
            "tables": tables,
            "samples": {"What counts": predictor.told()},
            "figures": [plots.recall(ranks, "users whose next choice", out)],
            "cost": cost.of_prediction(predictor, predictor.module, predictor.input_example),
            **self.evidence(predictions).summary(),
        }

    def evidence(self, predictions: pd.DataFrame) -> Evidence:
        from gpt2 import evidence, slices

        ranks = {c.removeprefix("rank_"): predictions[c].to_numpy() for c in predictions if c.startswith("rank_")}
        parts = slices.of_choices(predictions["history"].to_numpy(), predictions["popularity"].to_numpy())
        key = evidence.key_of(predictions["test_item"], predictions["history"])
        return evidence.ranking(ranks, key, parts)


class HistoryDataset:
    """Windows of histories: `history` (B, P) item indices and `following` (B, P), the item after each, -1 for none."""

    def __init__(self, histories: Sequence[np.ndarray], context: int, last_only: bool = False):
        """Every step of every history is in one window; with `last_only` only its last step counts."""
        self.windows: list[np.ndarray] = []  # context + 1 items at most, the next window begins with the last of one
        for items in histories:
            ends = [len(items)] if last_only else range(len(items), 1, -context)
            self.windows += [items[max(0, end - context - 1) : end] for end in ends]
        self.last_only = last_only

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        import torch

        chosen = [self.windows[i] for i in indices]
        shape = (len(chosen), max(len(w) for w in chosen) - 1)
        history, following = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
        for row, window in enumerate(chosen):
            items = torch.from_numpy(window.copy())
            history[row, : len(items) - 1] = items[:-1]
            first = len(items) - 2 if self.last_only else 0
            following[row, first : len(items) - 1] = items[first + 1 :]
        return {"history": history, "following": following}


class RecommendationPredictor:
    """Histories to rankings of the catalogue, or of given candidates."""

    def __init__(self, directory: Path):
        import pandas as pd

        from gpt2 import files, weights
        from gpt2.heads import Recommender
        from gpt2.hybrid import Hybrid
        from gpt2.tokenizer import Tokenizer

        items = pd.read_json(directory / "items.jsonl", lines=True, dtype={"item": str, "title": str, "text": str})
        self.titles, self.ids = items["title"].tolist(), items["item"].tolist()
        self.input_example = [{"history": self.titles[:2], "candidates": self.titles[2:5]}]
        self.index = {title: i for i, title in reversed(list(enumerate(self.titles)))}  # the first of equal titles
        self.index |= {item: i for i, item in enumerate(items["item"]) if item not in self.index}
        trunk = weights.load(directory)
        self.tokenizer = Tokenizer.load(directory, trunk.config.vocab_size)
        saved = weights.read_task(directory)
        self.item_tokens: int = saved.get("item_tokens", ITEM_TOKENS)
        self.module = Recommender(trunk, texts(items, self.tokenizer, self.item_tokens), log_popularity(items))
        self.context = saved["context"]
        path = directory / "head.safetensors"
        head, own = files.read(path), self.module.state_dict()
        files.check(path, head, {name: value for name, value in own.items() if not name.startswith("model.")})
        self.module.load_state_dict(head, strict=False)
        self.module.eval()
        self.hybrid: Hybrid | None = None
        if "weights" in saved:  # older models rank by text and popularity alone
            self.hybrid = Hybrid.load(directory, saved["weights"], len(items))
        self.read()

    def read(self) -> None:
        """Read the items' texts, once for all rankings."""
        import torch

        with torch.inference_mode():
            self.features = self.module.features()
            self.embeddings = self.module.embeddings(self.features)

    def retold(self, items: pd.DataFrame, change: Callable[[str], str]) -> RecommendationPredictor:
        """The same model of the same items, told as `change` makes of what is told of each."""
        from gpt2.heads import Recommender

        told = texts(items, self.tokenizer, self.item_tokens, change)
        other = copy(self)
        other.module = Recommender(self.module.model, told, self.module.log_popularity)
        other.module.load_state_dict(self.module.state_dict())
        other.module.eval()
        other.read()
        return other

    def scores(self, histories: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """(histories, items) scores: those of text with those of what people chose."""
        return self.with_choices(self.by_text(histories), histories)

    def with_choices(self, by_text: np.ndarray, histories: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """The (histories, items) scores of `by_text` with what people chose beside them; see `gpt2.hybrid`."""
        return by_text if self.hybrid is None else self.hybrid.scores(by_text, histories)

    def told(self) -> list[str]:
        """How scores are made."""
        if self.hybrid is None:
            return ["a score is the model's, of texts and popularity"]
        parts = ", ".join(f"{value:+.3g} x {name}" for name, value in self.hybrid.weights.items())
        return [f"a score is, by weights fitted on the validation's choices, {parts}"]

    def by_text(self, histories: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """(histories, items) scores of the model alone: estimates of log-probabilities, up to a constant.

        The latest items of a long history count, as many as in training; an empty one has popularity alone.
        """
        import numpy as np
        import torch

        from gpt2.baselines import parts
        from gpt2.heads import pack, pad

        out = []
        with torch.inference_mode():
            for some in parts(len(histories), len(self.titles)):
                rows = [[int(i) for i in h[-self.context :]] for h in histories[some]]
                ids, lengths = pad(rows)
                items, packed = pack(ids, lengths.clamp_min(1))
                last = self.module.tastes(items, packed, self.features)[packed.last] * (lengths > 0)[:, None]
                out.append(self.module.scores(last, self.embeddings).numpy())
        return np.concatenate(out)

    def top(
        self, scores: np.ndarray, seen: Sequence[int] | np.ndarray, k: int, among: Sequence[int] | None = None
    ) -> list[int]:
        """The k best items that were not seen, of all or of those given."""
        import numpy as np

        allowed = np.full(len(scores), -np.inf)
        chosen = np.arange(len(scores)) if among is None else np.asarray(among, dtype=int)
        allowed[chosen] = scores[chosen]
        if among is None:
            allowed[np.asarray(seen, dtype=int)] = -np.inf
        order = np.argsort(-allowed, kind="stable")[:k]
        return [int(i) for i in order if np.isfinite(allowed[i])]

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame:
        """A row per input: `ranking` (titles, best first) and `scores`.

        An input is {"history": [...], "candidates": [...]}; titles or item ids; without candidates the catalogue less
        the history. `params`: `top_k`. `ValueError` names an unknown item.
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
        """Items of a record by title or id."""
        if not isinstance(record, Mapping) or "history" not in record:
            raise ValueError(f'input {number} is {record!r}; give {{"history": [titles]}}')
        values = record.get(name)
        if values is None or isinstance(values, float):  # a missing cell of a table
            return None
        unknown = [v for v in values if str(v) not in self.index]
        if unknown:
            raise ValueError(f"input {number}: {name} has {unknown[0]!r}, which is not in the catalogue")
        return [self.index[str(v)] for v in values]


def load_examples(examples: Path) -> tuple[list[np.ndarray], pd.DataFrame]:
    """(histories as item indices in order, items)."""
    import pandas as pd

    histories = pd.read_parquet(examples / "histories.parquet")["items"].tolist()
    return histories, pd.read_parquet(examples / "items.parquet")


def log_popularity(items: pd.DataFrame) -> Tensor:
    """(items,) log of each item's share of the training interactions, one added to each count."""
    import torch

    counts = torch.tensor(items["popularity"].to_numpy(), dtype=torch.float32) + 1
    return (counts / counts.sum()).log()


def load_disliked(examples: Path) -> list[np.ndarray] | None:
    """Of each history the items that the user saw but did not like; None where all that was seen is in the history."""
    import pandas as pd

    table = pd.read_parquet(examples / "histories.parquet")
    return [each.astype(int) for each in table["disliked"]] if "disliked" in table else None


def facts_of(examples: Path) -> dict[str, Any]:
    """What a model keeps of how its catalogue was read: `item_tokens`, to how many tokens what is told of an item is
    cut, and `interactions`, the columns and what a like weighs."""
    return json.loads((examples / "catalogue.json").read_text())


def texts(
    items: pd.DataFrame, tokenizer: Tokenizer, length: int = ITEM_TOKENS, change: Callable[[str], str] = str
) -> list[list[int]]:
    """Ids of each item's title and text, perhaps changed, `length` of them at most."""
    told = [change(sentence(title, text)) for title, text in zip(items["title"], items["text"], strict=True)]
    return [ids[:length] or [tokenizer.end_of_text] for ids in tokenizer.encode_batch(told)]


TASK = Recommendation()
