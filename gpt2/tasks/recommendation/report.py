"""What a recommender's report is made from: how high it ranks what users chose next, and what it recommends to some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpt2.evaluation.behavioural_tests import DIRECTION, INVARIANCE, LINK, MINIMUM, SLACK, Test
from gpt2.evaluation.metrics import rank_of
from gpt2.tasks.recommendation import hybrid
from gpt2.tasks.recommendation.catalogue import attributes
from gpt2.tasks.recommendation.config import RecommendConfig
from gpt2.tasks.recommendation.dataset import load_disliked, load_examples
from gpt2.tasks.recommendation.hybrid import Scorer, parts
from gpt2.tasks.recommendation.recommend import recommend

if TYPE_CHECKING:
    from gpt2.evaluation.unit_results import Evidence
    from gpt2.tasks.recommendation.predictor import RecommendationPredictor
    from gpt2.tasks.task import Task

TESTED = 64
"""Users who are drawn, the same each time."""
BEST, CLOSEST, LEAST = 10, 5, 5
"""Items that are offered; what somebody chose who should be offered a new one; choices of one kind that are enough."""
CHANGES: dict[str, Callable[[str], str]] = {
    "in upper case": str.upper,
    "in lower case": str.lower,
    "with a link behind them": lambda text: text + LINK,
    "with other spaces": lambda text: "  ".join(text.split(" ")) + " ",
}
"""Of what is told of an item: none changes what it is."""
REMARKS = (
    f"Behavioural tests are of {TESTED} users (all, if they are fewer), drawn by chance but the same for every model, "
    f"after all but their last choice; {BEST} items are offered. A kind is an attribute, as a genre; a new item is one "
    "that nobody chose in training; closest are items by the cosine of their texts' embeddings; a rank is lower if it "
    f"is by more than {SLACK:.0%}.",
    "What was chosen before is left out of a ranking by its id, whatever its score.",
)


def suite(
    predictor: RecommendationPredictor,
    histories: Sequence[np.ndarray],
    items: pd.DataFrame,
    disliked: Sequence[np.ndarray] | None = None,
) -> list[Test]:
    """Of a model by its rankings, after all but the last choice of some `histories` (item indices in order of time).

    `items`: title, text, and `popularity`, counts of the training. Neither what was chosen nor what was `disliked` is
    offered. An item is new that has no popularity.
    """
    return Sample(predictor, histories, items, disliked).tests()


class Sample:
    """Some users, and what is offered to them."""

    def __init__(
        self,
        predictor: RecommendationPredictor,
        histories: Sequence[np.ndarray],
        items: pd.DataFrame,
        disliked: Sequence[np.ndarray] | None,
    ):
        self.drawn = np.random.default_rng(0)
        self.predictor, self.items, self.titles = predictor, items, items["title"].tolist()
        self.popularity, self.embeddings = items["popularity"].to_numpy(), predictor.embeddings.numpy()
        low = [np.zeros(0, int)] * len(histories) if disliked is None else disliked
        seen = [np.concatenate([h[:-1], other]).astype(int) for h, other in zip(histories, low, strict=True)]
        able = [u for u, each in enumerate(seen) if len(items) - len(each) > 2]  # something is left to be told apart
        users = sorted(self.drawn.permutation(able)[:TESTED].astype(int).tolist())
        self.before, self.seen = [histories[u][:-1] for u in users], [seen[u] for u in users]

    def tests(self) -> list[Test]:
        if not self.before:
            return []
        added = [self.any_unseen(seen) for seen in self.seen]
        near = [int(self.closest(x, seen)[0]) for x, seen in zip(added, self.seen, strict=True)]
        barred = [np.append(seen, x) for x, seen in zip(added, self.seen, strict=True)]
        best: list[list[int]] = []
        found = []
        for i, row in enumerate(scores(self.predictor, self.before)):
            best.append(self.predictor.top(row, self.seen[i], BEST))
            found.append(rank_of(row, near[i], barred[i]))
        old = np.array(found)
        later = [np.append(h, x) for h, x in zip(self.before, added, strict=True)]
        sooner = [np.append(x, h) for h, x in zip(self.before, added, strict=True)]
        latest, oldest = (ranks_without(self.predictor, each, near, barred) for each in (later, sooner))

        def moved(first: np.ndarray, then: np.ndarray, where: str) -> Callable[[int], str]:
            return lambda i: (
                f"{self.titles[near[i]]} from rank {first[i]} to {then[i]} with {self.titles[added[i]]} {where}"
            )

        raised = "after one more choice the item closest to it ranks no lower"
        order = "the item closest to a choice ranks no lower if that was the latest than if it was the first"
        return [
            self.again(best),
            self.of_a_kind(),
            self.new_items(),
            *self.retold(best),
            Test(DIRECTION, raised, lower(latest, old), moved(old, latest, "chosen at last"), True),
            Test(DIRECTION, order, lower(latest, oldest), moved(oldest, latest, "as the latest, not the first"), True),
        ]

    def again(self, best: Sequence[Sequence[int]]) -> Test:
        """No title of what was seen; two items may have the same."""
        twice = []
        for offered, seen in zip(best, self.seen, strict=True):
            known = {self.titles[i] for i in seen}
            again = [self.titles[i] + ("" if i in seen else ", by another id") for i in offered]
            twice.append([told for i, told in zip(offered, again, strict=True) if self.titles[i] in known])
        failed = np.array([bool(each) for each in twice])
        return Test(MINIMUM, "no title that was chosen is offered again", failed, lambda i: twice[i][0], True)

    def of_a_kind(self) -> Test:
        """Of each user who chose enough of a kind, one such: had he chosen that alone, more of it is offered to him
        than the most popular have."""
        kinds = attributes(self.items["text"].tolist())
        having = Counter(name for each in kinds for name in each)
        histories, of = [], []
        for history in self.before:
            own = Counter(name for i in history for name in kinds[i])
            enough = sorted(name for name, n in own.items() if n >= LEAST and having[name] - n >= BEST)
            if enough:
                of.append(enough[self.drawn.integers(len(enough))])
                histories.append(np.array([i for i in history if of[-1] in kinds[i]]))
        popular = self.popularity.astype(float)
        rows = scores(self.predictor, histories)
        best = [self.predictor.top(row, h, BEST) for row, h in zip(rows, histories, strict=True)]
        usual = [self.predictor.top(popular, h, BEST) for h in histories]

        def count(offered: Sequence[Sequence[int]]) -> np.ndarray:
            return np.array([sum(kind in kinds[i] for i in each) for kind, each in zip(of, offered, strict=True)])

        mine, theirs = count(best), count(usual)

        def such(i: int) -> str:
            chosen = f"{len(histories[i])} choices, all of {kinds[histories[i][0]][of[i]]}"
            return f"{chosen}: {mine[i]} of those offered, {theirs[i]} of the popular ones"

        name = f"who chose one kind alone is offered more of it than the {BEST} most popular items have"
        return Test(MINIMUM, name, (mine <= theirs) & (theirs < BEST), such, True)

    def new_items(self) -> Test:
        """Items that nobody has chosen, to somebody who chose those closest to each."""
        new = np.flatnonzero(self.popularity == 0)
        new = np.sort(self.drawn.permutation(new)[:TESTED])
        barred = np.flatnonzero(self.popularity == 0)
        histories = [self.closest(int(item), barred)[:CLOSEST][::-1] for item in new]
        found = ranks_without(self.predictor, histories, new.tolist(), histories)

        def such(i: int) -> str:
            closest = "; ".join(self.titles[item] for item in histories[i][:-3:-1])
            return f"{self.titles[new[i]]} has rank {found[i]} after {closest} …"

        name = f"who chose the {CLOSEST} items closest to a new one is offered that one"
        return Test(MINIMUM, name, found > BEST, such, True)

    def retold(self, best: Sequence[Sequence[int]]) -> list[Test]:
        """The first item stays the first, where all items are told otherwise but mean the same."""
        found = []
        for how, change in CHANGES.items():
            other = self.predictor.retold(self.items, change)
            if (other.features == self.predictor.features).all():
                continue  # they were so before: no model could fail
            rows = scores(other, self.before)
            first = [other.top(row, seen, 1) for row, seen in zip(rows, self.seen, strict=True)]
            both = [(old[0], new[0]) for old, new in zip(best, first, strict=True)]
            told = [f"{self.titles[new]} instead of {self.titles[old]}" for old, new in both]
            wrong = np.array([old != new for old, new in both])
            name = f"all texts {how}: the first item stays the first"
            found.append(Test(INVARIANCE, name, wrong, told.__getitem__, True))
        return found

    def any_unseen(self, seen: np.ndarray) -> int:
        return int(self.drawn.choice(np.setdiff1d(np.arange(len(self.titles)), seen)))

    def closest(self, item: int, barred: np.ndarray) -> np.ndarray:
        """The others, without the barred, the closest first."""
        order = np.argsort(-(self.embeddings @ self.embeddings[item]), kind="stable")
        return order[~np.isin(order, np.append(barred, item))]


def lower(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """(N,) which ranks are larger than before, beyond the slack."""
    return after > (1 + SLACK) * before


def scores(predictor: RecommendationPredictor, histories: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """A row (items,) of each history, so that there is never a table of all."""
    n_items = len(predictor.titles)
    return (row for some in parts(len(histories), n_items) for row in predictor.scores(histories[some]))


def ranks_without(
    predictor: RecommendationPredictor,
    histories: Sequence[np.ndarray],
    wanted: Sequence[int],
    barred: Sequence[np.ndarray],
) -> np.ndarray:
    """(histories,) ranks, from 1, of the wanted items, the barred left out."""
    rows = scores(predictor, histories)
    return np.array([rank_of(*of) for of in zip(rows, wanted, barred, strict=True)], dtype=int)


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

    It is sought among all items but those that the user had seen, as `gpt2.tasks.recommendation.recommend` ranks:
    those before it and,
    of each user, the `disliked`, of which there are none where all interactions count alike. `popular` (items,) are
    counts of the training. A few users at a time (`gpt2.tasks.recommendation.hybrid.parts`): there is never a
    table of all users and all items.
    """
    before, wanted, n_items = [h[:-1] for h in histories], [int(h[-1]) for h in histories], len(popular)
    seen = before if disliked is None else [np.concatenate(both) for both in zip(before, disliked, strict=True)]
    similar = hybrid.cosines(before, n_items)
    others: dict[str, Scorer] = {
        "popularity": lambda asked: np.broadcast_to(popular, (len(asked), n_items)),
        "item-kNN": hybrid.item_knn(similar),
        "recent item-kNN": hybrid.recent_item_knn(similar),
        "EASE": hybrid.ease(before, n_items),
    }
    found: dict[str, list[int]] = {name: [] for name in ("model", *others, "text alone")}
    for some in hybrid.parts(len(before), n_items):
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


def evaluate(task: Task, predictor: RecommendationPredictor, examples: Path, out: Path) -> dict[str, Any]:
    """Return the report of a model on the test split of the examples; its predictions and figures go to `out`."""
    import numpy as np
    import pandas as pd

    from gpt2.evaluation import behavioural_tests, metrics, plots, report
    from gpt2.evaluation.unit_results import UNKNOWN
    from gpt2.tasks.recommendation import hybrid

    histories, items = load_examples(examples)
    other = None  # the catalogue may have changed since the model learned
    if items["item"].tolist() != predictor.ids:
        other = Elsewhere(predictor, items["item"].tolist())
    test = np.array([h[-1] for h in histories])
    popular = hybrid.popularity([h[:-2] for h in histories], len(items))
    disliked = load_disliked(examples)
    placed = ranks(other or predictor, histories, popular, disliked)
    facts = {
        "test_item": test,
        "history": [len(h) - 1 for h in histories],
        "popularity": popular[test].astype(int),
        **{f"rank_{n}": r for n, r in placed.items()},
    }
    predictions = pd.DataFrame(facts)
    predictions.to_parquet(out / "predictions.parquet", index=False)
    ranked = {n: metrics.ranking(r) for n, r in placed.items()}
    remarks = [other.remark()] if other else list(REMARKS)
    tables: dict[str, Any] = {}
    if other is None:
        some = recommended(predictor, histories, items, placed["model"], disliked)
        tested = suite(predictor, histories, items, disliked)
        tables = {"Recommendations, and why": some} | behavioural_tests.tables(tested)
    return {
        "task": task.name,
        "title": task.title,
        "primary": {"name": task.primary, "higher_is_better": task.higher_is_better},
        "floor": task.floor,
        "metrics": ranked.pop("model"),
        "baselines": ranked,
        "counts": {"users": len(histories), "items": len(items), "never_seen": int((popular[test] == 0).sum())},
        UNKNOWN: other.unknown if other else 0,
        "remarks": remarks,
        "tables": tables,
        "samples": {"What counts": predictor.told()},
        "figures": [plots.recall(placed, "users whose next choice", out)],
        "cost": report.of_prediction(predictor, predictor.module, predictor.input_example),
        **evidence(task, predictions).summary(),
    }


def evidence(task: Task, predictions: pd.DataFrame) -> Evidence:
    """Return the results of each unit that `predictions.parquet` holds."""
    from gpt2.evaluation import unit_results

    placed = {c.removeprefix("rank_"): predictions[c].to_numpy() for c in predictions if c.startswith("rank_")}
    parts = unit_results.of_choices(predictions["history"].to_numpy(), predictions["popularity"].to_numpy())
    key = unit_results.key_of(predictions["test_item"], predictions["history"])
    return unit_results.ranking(placed, key, parts)
