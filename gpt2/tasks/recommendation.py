"""Recommendation by text: given what a user liked, in order, rank what comes next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from gpt2.config import OptimizerConfig, TrainConfig
from gpt2.task import Task, TaskSettings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn

    from gpt2.heads import Recommender
    from gpt2.model import GPT2
    from gpt2.tokenizer import Tokenizer

ITEM_TOKENS = 32
"""An item's text is cut to this many tokens."""
HISTORY_ITEM_TOKENS = 12
"""Inside a history an item's title is cut to this many tokens."""
NEGATIVES = 256


class RecommendationSettings(TaskSettings):
    """Recommendation: who saw what, when, and what the items are called."""

    source: str = Field("sample:movielens", min_length=1)
    """A folder with `interactions.*` (user, item, time) and `items.*` (item, title, text), .csv, .jsonl or .parquet;
    or `sample:movielens`."""
    train: TrainConfig = TrainConfig(
        epochs=1,
        batch_size=32,
        micro_batch_size=16,
        context=192,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, schedule="cosine", final_ratio=0.0),
        eval_samples=128,
        checkpoint_every=50,
        log_every=10,
    )
    """Fine-tuning: length, batches, rates."""


class Recommendation(Task):
    """Rankings of a catalogue."""

    name = "recommendation"
    title = "Next film by text"
    primary = "ndcg_at_10"
    floor = "popularity"
    Settings = RecommendationSettings
    code: ClassVar[tuple[str, ...]] = ("gpt2.heads", "gpt2.baselines", "gpt2.metrics")
    input_example: ClassVar[list[dict[str, Any]]] = [
        {"history": ["Toy Story (1995)", "Aladdin (1992)"], "candidates": ["Lion King, The (1994)", "Psycho (1960)"]}
    ]
    params: ClassVar[Mapping[str, Any]] = {"top_k": 10}

    def prepare(self, settings: RecommendationSettings, source: Path, out: Path) -> dict[str, Any]:
        """Write items.parquet (item, title, text, popularity) and histories.parquet (user, item indices in order).

        The last item of a user is the test, the one before it the validation, the rest trains; popularity counts
        training interactions only. Interactions of the same second are ordered by a hash of user and item.
        """
        import pandas as pd

        interactions, items = read_source(source)
        known = interactions["item"].isin(items["item"])
        if not known.all():
            raise ValueError(
                f"{source}: {int((~known).sum())} interactions are with items that items.* does not list, such as "
                f"{interactions['item'][~known].iloc[0]!r}; add them or leave those rows out"
            )
        index = {item: i for i, item in enumerate(items["item"])}
        interactions = interactions.drop_duplicates(["user", "item"])
        ties = [tie_break(u, i) for u, i in zip(interactions["user"], interactions["item"], strict=True)]
        interactions = interactions.assign(tie=ties)
        interactions = interactions.sort_values(["user", "time", "tie"], kind="stable")
        interactions["index"] = interactions["item"].map(index)
        histories = interactions.groupby("user", sort=True)["index"].agg(list)
        usable = histories[histories.map(len) >= 4]
        if len(usable) < 2:
            raise ValueError(f"{source}: only {len(usable)} users have 4 items or more; add interactions")
        trained = pd.Series([item for history in usable for item in history[:-2]]).value_counts()
        popularity = trained.reindex(range(len(items)), fill_value=0).to_numpy()
        items.assign(popularity=popularity).to_parquet(out / "items.parquet", index=False)
        usable.rename("items").reset_index().to_parquet(out / "histories.parquet", index=False)
        return {"users": len(usable), "items": len(items), "interactions": len(interactions)}

    def dataset(self, examples: Path, split: str, tokenizer: Tokenizer, context: int) -> HistoryDataset:
        histories, items = load_examples(examples)
        held = {"train": 2, "validation": 1}[split]
        catalogue = Catalogue(items, tokenizer)
        return HistoryDataset([h[: len(h) - held] for h in histories], catalogue, context, last_only=split != "train")

    def module(self, model: GPT2, examples: Path) -> nn.Module:
        from gpt2.heads import Recommender

        _, items = load_examples(examples)
        return Recommender(model, log_popularity(items))

    def save(self, module: Any, examples: Path, tokenizer: Tokenizer, out: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from gpt2 import huggingface

        huggingface.save(module.model, out)
        tokenizer.save(out)
        _, items = load_examples(examples)
        module.eval()
        head = {n: p.detach().float().contiguous() for n, p in module.named_parameters() if not n.startswith("model.")}
        with torch.inference_mode():
            embeddings = embed_catalogue(module.float(), Catalogue(items, tokenizer))
        save_file(head | {"items": embeddings.contiguous()}, out / "head.safetensors")
        items.to_json(out / "items.jsonl", orient="records", lines=True, force_ascii=False)
        (out / "task.json").write_text(json.dumps({"task": self.name, "items": len(items)}, indent=1))

    def predictor(self, directory: Path) -> RecommendationPredictor:
        return RecommendationPredictor(directory)

    def evaluate(self, directory: Path, examples: Path, out: Path) -> dict[str, Any]:
        import numpy as np
        import pandas as pd

        from gpt2 import baselines, metrics

        histories, items = load_examples(examples)
        predictor = self.predictor(directory)
        before, test = [h[:-1] for h in histories], np.array([h[-1] for h in histories])
        trained = [h[:-2] for h in histories]
        popular = baselines.popularity(trained, len(items))
        scores = {
            "model": predictor.scores(before),
            "popularity": np.tile(popular, (len(before), 1)),
            "item-kNN": baselines.item_knn(before, len(items)),
        }
        ranks = {
            name: np.array([metrics.rank_of(s[u], test[u], before[u]) for u in range(len(before))])
            for name, s in scores.items()
        }
        pd.DataFrame({"test_item": test, **{f"rank_{n}": r for n, r in ranks.items()}}).to_parquet(
            out / "predictions.parquet", index=False
        )
        ranked = {n: metrics.ranking(r) for n, r in ranks.items()}
        titles = items["title"].tolist()
        samples = []
        for user in range(min(4, len(before))):
            top = [titles[i] for i in predictor.top(scores["model"][user], before[user], 5)]
            samples.append(f"after {'; '.join(titles[i] for i in before[user][-5:])} → {'; '.join(top)}")
        return {
            "task": self.name,
            "title": self.title,
            "primary": {"name": self.primary, "higher_is_better": self.higher_is_better},
            "floor": self.floor,
            "metrics": ranked.pop("model"),
            "baselines": ranked,
            "counts": {"users": len(before), "items": len(items)},
            "samples": {"Recommendations": samples},
            "figures": [],
        }


class Catalogue:
    """The items' texts as ids: long for an item's own embedding, short inside histories."""

    def __init__(self, items: pd.DataFrame, tokenizer: Tokenizer):
        self.end = tokenizer.end_of_text
        texts = [f"{r.title}: {r.text}" if r.text else str(r.title) for r in items.itertuples()]
        self.long = [[*ids[: ITEM_TOKENS - 1], self.end] for ids in tokenizer.encode_batch(texts)]
        short = tokenizer.encode_batch([str(t) for t in items["title"]])
        self.short = [[*ids[: HISTORY_ITEM_TOKENS - 1], self.end] for ids in short]
        weight = (items["popularity"].to_numpy() + 1.0) ** 0.5
        self.draw = weight / weight.sum()

    def history(self, items: Sequence[int] | np.ndarray, context: int) -> tuple[list[int], list[int], int]:
        """(ids, position of each item's last token, items left out at the front) of the latest items that fit."""
        first, used = len(items), 1
        while first > 0 and used + len(self.short[items[first - 1]]) <= context:
            first -= 1
            used += len(self.short[items[first]])
        ids, ends = [self.end], []
        for item in items[first:]:
            ids += self.short[item]
            ends.append(len(ids) - 1)
        return ids, ends, first


class HistoryDataset:
    """Windows of users' histories; every item but the first of a history is to be predicted from those before it."""

    def __init__(self, histories: Sequence[np.ndarray], catalogue: Catalogue, context: int, last_only: bool):
        self.histories, self.catalogue, self.context = histories, catalogue, context
        self.last_only = last_only
        self.windows: list[tuple[int, int]] = []  # (user, end of the window, exclusive)
        for user, items in enumerate(histories):
            end = len(items)
            while end >= 2:
                self.windows.append((user, end))
                if last_only:
                    break
                _, ends, _ = catalogue.history(items[: end - 1], context)
                end -= max(1, len(ends))

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        """`ids`, `ends`, `following` of the windows, and the step's items: shared negatives and the windows' own."""
        import numpy as np
        import torch

        from gpt2.heads import pad

        generator = np.random.default_rng(seed)
        n = len(self.catalogue.long)
        negatives = np.unique(generator.choice(n, size=min(NEGATIVES, n), p=self.catalogue.draw))
        rows, ends, nexts = [], [], []
        for i in indices:
            user, end = self.windows[i]
            items = self.histories[user][:end]
            ids, places, first = self.catalogue.history(items[:-1], self.context)
            rows.append(ids)
            ends.append(places)
            nexts.append([int(item) for item in items[first + 1 :]])
        drawn = set(negatives.tolist())
        own = sorted({item for row in nexts for item in row} - drawn)
        items_of_step = [*negatives.tolist(), *own]
        where = {item: at for at, item in enumerate(items_of_step)}
        expected = np.minimum(1.0, 1 - (1 - self.catalogue.draw[negatives]) ** min(NEGATIVES, n))
        histories, _ = pad(rows)
        item_ids, item_lengths = pad([self.catalogue.long[i] for i in items_of_step])
        following = pad_with([[where[x] for x in row] for row in nexts], -1)
        if self.last_only:
            last = torch.tensor([len(row) - 1 for row in nexts])
            keep = torch.arange(following.shape[1]) == last[:, None]
            following = following.masked_fill(~keep, -1)
        return {
            "ids": histories,
            "ends": pad_with(ends, 0),
            "following": following,
            "item_ids": item_ids,
            "item_lengths": item_lengths,
            "items": torch.tensor(items_of_step),
            "log_expected": torch.tensor([*np.log(expected), *[-np.inf] * len(own)], dtype=torch.float32),
        }


def pad_with(rows: list[list[int]], value: int) -> Tensor:
    """(B, longest) int64."""
    from gpt2.heads import pad

    return pad(rows, value)[0]


class RecommendationPredictor:
    """Histories to rankings of the catalogue, or of given candidates."""

    def __init__(self, directory: Path):
        import pandas as pd
        from safetensors.torch import load_file

        from gpt2 import huggingface
        from gpt2.heads import Recommender
        from gpt2.tokenizer import Tokenizer

        self.items = pd.read_json(directory / "items.jsonl", lines=True, dtype={"item": str, "title": str, "text": str})
        self.titles = self.items["title"].tolist()
        self.index = {title: i for i, title in enumerate(self.titles)}
        self.index |= {str(item): i for i, item in enumerate(self.items["item"]) if str(item) not in self.index}
        self.catalogue = Catalogue(self.items, Tokenizer.load(directory))
        self.module: Recommender = Recommender(huggingface.load(directory), log_popularity(self.items))
        state = load_file(directory / "head.safetensors")
        self.embeddings = state.pop("items")
        self.module.load_state_dict(state, strict=False)
        self.module.eval()

    def scores(self, histories: Sequence[Sequence[int] | np.ndarray], batch_size: int = 32) -> np.ndarray:
        """(histories, items) scores: estimates of log-probabilities, up to a constant."""
        import numpy as np
        import torch

        from gpt2.heads import pad

        context, out = self.module.model.config.n_positions, []
        with torch.inference_mode():
            for start in range(0, len(histories), batch_size):
                read = [self.catalogue.history(h, context) for h in histories[start : start + batch_size]]
                ids, _ = pad([ids for ids, _, _ in read])
                ends = torch.tensor([[ends[-1]] if ends else [0] for _, ends, _ in read])
                tastes = self.module.tastes(ids, ends)[:, 0]
                out.append(self.module.scores(tastes, self.embeddings, self.module.log_popularity).numpy())
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
            best = self.top(row, history or [], top_k, among or None)
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


def embed_catalogue(module: Recommender, catalogue: Catalogue, batch_size: int = 128) -> Tensor:
    """(items, width) embeddings of the whole catalogue."""
    import torch

    from gpt2.heads import pad

    starts = range(0, len(catalogue.long), batch_size)
    return torch.cat([module.embed_items(*pad(catalogue.long[s : s + batch_size])) for s in starts])


def tie_break(user: Any, item: Any) -> str:
    """An order of interactions at the same time that says nothing about them."""
    from hashlib import blake2b

    return blake2b(f"{user} {item}".encode(), digest_size=8).hexdigest()


def read_source(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(interactions: user, item, time; items: item, title, text)."""
    from gpt2.tasks.sentiment import read_table

    if (source / "MovieLens100k_data.parquet.brotli").exists():
        return read_movielens(source)
    tables = []
    needed = {"interactions": ["user", "item", "time"], "items": ["item", "title"]}
    for name, columns in needed.items():
        files = sorted(source.glob(f"{name}.*")) if source.is_dir() else []
        if not files:
            raise ValueError(f"{source} has no {name}.csv, .jsonl or .parquet; a folder with both tables is needed")
        table = read_table(files[0])
        missing = [c for c in columns if c not in table]
        if missing:
            raise ValueError(f"{files[0]} has no column {missing[0]!r}; it has {', '.join(map(str, table.columns))}")
        tables.append(table.dropna(subset=columns))
    interactions, items = tables
    interactions["item"], items["item"] = interactions["item"].astype(str), items["item"].astype(str)
    items = items.drop_duplicates("item").reset_index(drop=True)
    text = items["text"].fillna("").astype(str) if "text" in items else ""
    return interactions[["user", "item", "time"]], items[["item", "title"]].assign(text=text)


def read_movielens(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """MovieLens-100k (Harper and Konstan 2015): the items' text is their genres."""
    import pandas as pd

    ratings = pd.read_parquet(source / "MovieLens100k_data.parquet.brotli")
    films = pd.read_parquet(source / "MovieLens100k_items.parquet.brotli")
    names = list(films.columns[films.columns.get_loc("unknown") + 1 :])
    genres = [", ".join(n for n in names if row[n]) for row in films[names].to_dict("records")]
    items = pd.DataFrame(
        {"item": films["movie_id"].astype(str), "title": films["movie_title"].astype(str), "text": genres}
    )
    interactions = pd.DataFrame(
        {"user": ratings["user_id"], "item": ratings["movie_id"].astype(str), "time": ratings["timestamp"]}
    )
    return interactions, items


TASK = Recommendation()
