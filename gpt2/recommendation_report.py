"""What a recommender's report is made from: how high it ranks what users chose next, and what it recommends to some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpt2 import baselines
from gpt2.baselines import Scorer
from gpt2.metrics import rank_of
from gpt2.recommending import RecommendConfig, recommend

if TYPE_CHECKING:
    from gpt2.tasks.recommendation import RecommendationPredictor

SHOWN_USERS, SHOWN, LATEST = 4, 3, 5
"""Users in the report, items recommended to each, and choices of theirs that are told."""
NEXT = "what the user did choose next"


class Elsewhere:
    """A recommender that is asked of another catalogue than its own, as a champion is when products came or went: it
    passes over what it does not know in histories, and never recommends it."""

    def __init__(self, predictor: RecommendationPredictor, items: Sequence[str]):
        """`items`: the ids of the other catalogue."""
        own = {item: i for i, item in enumerate(predictor.ids)}
        self.predictor, self.own = predictor, np.array([own.get(item, -1) for item in items])
        self.known = np.flatnonzero(self.own >= 0)

    @property
    def unknown(self) -> int:
        """How many items it does not know."""
        return len(self.own) - len(self.known)

    def remark(self) -> str:
        """What the report says of it."""
        return (
            f"It is measured on another catalogue than its own: {self.unknown:,} of {len(self.own):,} items are "
            f"unknown to it, and count as never recommended."
        )

    def by_text(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """(histories, items) scores of the model alone; of what is unknown -inf."""
        return self.spread(self.predictor.by_text(self.translated(histories)))

    def with_choices(self, by_text: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
        """The same with what people chose beside them, which goes by the scores of all of its own items."""
        return self.spread(self.predictor.scores(self.translated(histories)))

    def translated(self, histories: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = [self.own[np.asarray(history, dtype=int)] for history in histories]
        return [history[history >= 0] for history in found]

    def spread(self, scores: np.ndarray) -> np.ndarray:
        out = np.full((len(scores), len(self.own)), -np.inf)
        out[:, self.known] = scores[:, self.own[self.known]]
        return out


def ranks(
    predictor: RecommendationPredictor | Elsewhere,
    histories: Sequence[np.ndarray],
    popular: np.ndarray,
    disliked: Sequence[np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Of the model and each baseline the (users,) ranks, from 1, of the last item of each history by those before it.

    It is sought among all items but those that the user had seen, as `gpt2.recommending` ranks: those before it and,
    of each user, the `disliked`, of which there are none where all interactions count alike. `popular` (items,) are
    counts of the training. A few users at a time (`gpt2.baselines.parts`): there is never a
    table of all users and all items.
    """
    before, wanted, n_items = [h[:-1] for h in histories], [int(h[-1]) for h in histories], len(popular)
    seen = before if disliked is None else [np.concatenate(both) for both in zip(before, disliked, strict=True)]
    similar = baselines.cosines(before, n_items)
    others: dict[str, Scorer] = {
        "popularity": lambda asked: np.broadcast_to(popular, (len(asked), n_items)),
        "item-kNN": baselines.item_knn(similar),
        "recent item-kNN": baselines.recent_item_knn(similar),
        "EASE": baselines.ease(before, n_items),
    }
    found: dict[str, list[int]] = {name: [] for name in ("model", *others, "text alone")}
    for some in baselines.parts(len(before), n_items):
        asked = before[some]
        by_text = predictor.by_text(asked)
        own = {"model": predictor.with_choices(by_text, asked), "text alone": by_text}
        for name, each in found.items():
            scores = own[name] if name in own else others[name](asked)
            each += [rank_of(*of) for of in zip(scores, wanted[some], seen[some], strict=True)]
    return {name: np.array(each) for name, each in found.items()}


def recommended(
    predictor: RecommendationPredictor,
    histories: Sequence[np.ndarray],
    items: pd.DataFrame,
    rank: np.ndarray,
    disliked: Sequence[np.ndarray] | None = None,
) -> dict[str, Any]:
    """A table for the report: to some users, after all but their last choice, what is recommended and why, and what
    they did choose next, at the model's `rank` (users,)."""
    titles, ids = items["title"].tolist(), items["item"].tolist()
    users = np.unique(np.linspace(0, len(histories) - 1, SHOWN_USERS).astype(int)).tolist()
    own = [[ids[i] for i in histories[user][:-1]] for user in users]
    low = [[ids[i] for i in (() if disliked is None else disliked[user])] for user in users]
    table = recommend(
        predictor, items, pd.DataFrame({"chosen": own, "disliked": low}, users), RecommendConfig(top_k=SHOWN), ""
    )
    rows: list[list[Any]] = []
    for user, best in table.groupby("user", sort=False):
        *before, last = histories[user]
        told = "; ".join(titles[i] for i in before[-LATEST:])
        for row in best.itertuples():
            hit = f" This is {NEXT}." if row.item == ids[last] else ""
            rows.append([told if row.rank == 1 else "", row.rank, row.title, row.reason + hit])
        if ids[last] not in set(best["item"]):
            rows.append(["", int(rank[user]), titles[last], f"({NEXT})"])
    return {"header": [f"after, at last (of {len(histories):,} users)", "rank", "recommended", "why"], "rows": rows}
