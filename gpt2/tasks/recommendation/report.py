"""The recommender's report: rank of the next choice beside baselines, behavioural tests, recommendations to some users.

A model can also be measured on another catalogue than its own, as a champion is after products came or went.
"""

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
    from gpt2.evaluation.unit_results import UnitResults
    from gpt2.tasks.recommendation.predictor import RecommendationPredictor
    from gpt2.tasks.task import Task

TESTED = 64
"""Number of sampled users, the same ones each time."""
BEST, CLOSEST, LEAST = 10, 5, 5
"""Number of recommended items; of choices in the test of new items; and fewest choices of one genre in its test."""
CHANGES: dict[str, Callable[[str], str]] = {
    "in upper case": str.upper,
    "in lower case": str.lower,
    "with a link behind them": lambda text: text + LINK,
    "with other spaces": lambda text: "  ".join(text.split(" ")) + " ",
}
"""Changes of an item's description that keep its meaning."""
REMARKS = (
    f"Behavioural tests use {TESTED} random users (or all, if there are fewer), the same for every model. {BEST} items "
    "are recommended after all but their last choice. A kind is an attribute, such as a genre. A new item is one that "
    "nobody chose in training. Items are close by the cosine of their texts' embeddings. A rank counts as lower if it "
    f"is lower by more than {SLACK:.0%}.",
    "Earlier choices are left out of a ranking by their id, whatever their score.",
)


def suite(
    predictor: RecommendationPredictor,
    histories: Sequence[np.ndarray],
    items: pd.DataFrame,
    disliked: Sequence[np.ndarray] | None = None,
) -> list[Test]:
    """Return the behavioural tests of a model's rankings after all but the last choice of sampled histories.

    `histories` are item indices in order of time. `items` have title, text and `popularity`, counts in training; a new
    item has none. Chosen and `disliked` items are not recommended.
    """
    return Sample(predictor, histories, items, disliked).tests()


class Sample:
    """Sampled users and their recommendations, for the behavioural tests."""

    def __init__(
        self,
        predictor: RecommendationPredictor,
        histories: Sequence[np.ndarray],
        items: pd.DataFrame,
        disliked: Sequence[np.ndarray] | None,
    ):
        self.drawn = np.random.default_rng(0)
        self.predictor, self.items, self.titles = predictor, items, items["title"].tolist()
        self.popularity, self.embeddings = items["popularity"].to_numpy(), predictor.embeddings.cpu().numpy()
        low = [np.zeros(0, int)] * len(histories) if disliked is None else disliked
        seen = [np.concatenate([h[:-1], other]).astype(int) for h, other in zip(histories, low, strict=True)]
        able = [u for u, each in enumerate(seen) if len(items) - len(each) > 2]  # enough items are left to rank
        users = sorted(self.drawn.permutation(able)[:TESTED].astype(int).tolist())
        self.before, self.seen = [histories[u][:-1] for u in users], [seen[u] for u in users]

    def tests(self) -> list[Test]:
        """Return all behavioural tests; empty if there are no users."""
        if not self.before:
            return []
        added = [self.any_unseen(seen) for seen in self.seen]
        near = [int(self.closest(x, seen)[0]) for x, seen in zip(added, self.seen, strict=True)]
        barred = [np.append(seen, x) for x, seen in zip(added, self.seen, strict=True)]
        best: list[list[int]] = []
        ranks_before = []
        for i, row in enumerate(scores(self.predictor, self.before)):
            best.append(self.predictor.top(row, self.seen[i], BEST))
            ranks_before.append(rank_of(row, near[i], barred[i]))
        old = np.array(ranks_before)
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
            self.repeated_titles(best),
            self.single_kind(),
            self.new_items(),
            *self.retold(best),
            Test(DIRECTION, raised, lower(latest, old), moved(old, latest, "chosen at last"), True),
            Test(DIRECTION, order, lower(latest, oldest), moved(oldest, latest, "as the latest, not the first"), True),
        ]

    def repeated_titles(self, best: Sequence[Sequence[int]]) -> Test:
        """Return the test that no title of a seen item is recommended; two items may have the same title."""
        twice = []
        for offered, seen in zip(best, self.seen, strict=True):
            known = {self.titles[i] for i in seen}
            described = [self.titles[i] + ("" if i in seen else ", by another id") for i in offered]
            twice.append([title for i, title in zip(offered, described, strict=True) if self.titles[i] in known])
        failed = np.array([bool(each) for each in twice])
        return Test(MINIMUM, "no title that was chosen is offered again", failed, lambda i: twice[i][0], True)

    def single_kind(self) -> Test:
        """Return the test of users with enough items of one genre.

        Given only those items, the top recommendations hold more of that genre than the most popular items do.
        """
        kinds = attributes(self.items["text"].tolist())
        having = Counter(name for each in kinds for name in each)
        histories, genres = [], []
        for history in self.before:
            own = Counter(name for i in history for name in kinds[i])
            enough = sorted(name for name, n in own.items() if n >= LEAST and having[name] - n >= BEST)
            if enough:
                genres.append(enough[self.drawn.integers(len(enough))])
                histories.append(np.array([i for i in history if genres[-1] in kinds[i]]))
        popular = self.popularity.astype(float)
        rows = scores(self.predictor, histories)
        best = [self.predictor.top(row, h, BEST) for row, h in zip(rows, histories, strict=True)]
        usual = [self.predictor.top(popular, h, BEST) for h in histories]

        def count(offered: Sequence[Sequence[int]]) -> np.ndarray:
            return np.array([sum(kind in kinds[i] for i in each) for kind, each in zip(genres, offered, strict=True)])

        mine, theirs = count(best), count(usual)

        def example(i: int) -> str:
            chosen = f"{len(histories[i])} choices, all of {kinds[histories[i][0]][genres[i]]}"
            return f"{chosen}: {mine[i]} of those recommended, {theirs[i]} of the popular ones"

        name = f"users who chose one kind alone are recommended more of it than the {BEST} most popular items have"
        return Test(MINIMUM, name, (mine <= theirs) & (theirs < BEST), example, True)

    def new_items(self) -> Test:
        """Return the test that an item nobody chose is recommended to users who chose the items closest to it."""
        new = np.flatnonzero(self.popularity == 0)
        new = np.sort(self.drawn.permutation(new)[:TESTED])
        barred = np.flatnonzero(self.popularity == 0)
        histories = [self.closest(int(item), barred)[:CLOSEST][::-1] for item in new]
        new_ranks = ranks_without(self.predictor, histories, new.tolist(), histories)

        def example(i: int) -> str:
            closest = "; ".join(self.titles[item] for item in histories[i][:-3:-1])
            return f"{self.titles[new[i]]} has rank {new_ranks[i]} after {closest} …"

        name = f"users who chose the {CLOSEST} items closest to a new one are recommended that one"
        return Test(MINIMUM, name, new_ranks > BEST, example, True)

    def retold(self, best: Sequence[Sequence[int]]) -> list[Test]:
        """Return the tests that the first item stays first if all descriptions change but keep their meaning."""
        tests = []
        for how, change in CHANGES.items():
            other = self.predictor.retold(self.items, change)
            if (other.features == self.predictor.features).all():
                continue  # the change has no effect, so no model could fail
            rows = scores(other, self.before)
            first = [other.top(row, seen, 1) for row, seen in zip(rows, self.seen, strict=True)]
            both = [(old[0], new[0]) for old, new in zip(best, first, strict=True)]
            examples = [f"{self.titles[new]} instead of {self.titles[old]}" for old, new in both]
            wrong = np.array([old != new for old, new in both])
            name = f"all texts {how}: the first item stays the first"
            tests.append(Test(INVARIANCE, name, wrong, examples.__getitem__, True))
        return tests

    def any_unseen(self, seen: np.ndarray) -> int:
        """Return a random item that is not among the seen ones."""
        return int(self.drawn.choice(np.setdiff1d(np.arange(len(self.titles)), seen)))

    def closest(self, item: int, barred: np.ndarray) -> np.ndarray:
        """Return the other items without the barred ones, closest first."""
        order = np.argsort(-(self.embeddings @ self.embeddings[item]), kind="stable")
        return order[~np.isin(order, np.append(barred, item))]


def lower(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return (N,) whether ranks are lower than before by more than `SLACK`."""
    return after > (1 + SLACK) * before


def scores(predictor: RecommendationPredictor, histories: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the (items,) scores of each history, so that there is never a matrix of all."""
    n_items = len(predictor.titles)
    return (row for some in parts(len(histories), n_items) for row in predictor.scores(histories[some]))


def ranks_without(
    predictor: RecommendationPredictor,
    histories: Sequence[np.ndarray],
    wanted: Sequence[int],
    barred: Sequence[np.ndarray],
) -> np.ndarray:
    """Return (histories,) ranks, from 1, of the wanted items, with the barred ones left out."""
    rows = scores(predictor, histories)
    return np.array([rank_of(*each) for each in zip(rows, wanted, barred, strict=True)], dtype=int)


SHOWN_USERS, SHOWN, LATEST = 4, 3, 5
"""Number of users in the report, of items recommended to each, and of their latest choices."""
NEXT = "the user's actual next choice"


class OtherCatalogue:
    """A recommender on a catalogue other than its own, such as a champion after products came or went.

    It ignores unknown items in histories and never recommends them.
    """

    def __init__(self, predictor: RecommendationPredictor, items: Sequence[str]):
        """`items` are the ids of the other catalogue."""
        own = {item: i for i, item in enumerate(predictor.ids)}
        self.predictor, self.own = predictor, np.array([own.get(item, -1) for item in items])
        self.known = np.flatnonzero(self.own >= 0)

    @property
    def unknown(self) -> int:
        """Return the number of items that the model does not know."""
        return len(self.own) - len(self.known)

    def remark(self) -> str:
        """Return the report's remark on the unknown items."""
        return (
            f"The model is measured on a catalogue other than its own: {self.unknown:,} of {len(self.own):,} items are "
            f"unknown to it and count as never recommended."
        )

    def by_text(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Return (histories, items) scores of the model alone; -inf for unknown items."""
        return self.spread(self.predictor.by_text(self.translated(histories)))

    def with_choices(self, by_text: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Return (histories, items) hybrid scores; `by_text` is not used, since they need all of its own items."""
        return self.spread(self.predictor.scores(self.translated(histories)))

    def translated(self, histories: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the histories as indices of the model's own catalogue, without unknown items."""
        own = [self.own[np.asarray(history, dtype=int)] for history in histories]
        return [history[history >= 0] for history in own]

    def spread(self, scores: np.ndarray) -> np.ndarray:
        """Return scores of the model's own items as scores of the other catalogue; -inf for unknown items."""
        out = np.full((len(scores), len(self.own)), -np.inf)
        out[:, self.known] = scores[:, self.own[self.known]]
        return out


def ranks(
    predictor: RecommendationPredictor | OtherCatalogue,
    histories: Sequence[np.ndarray],
    popular: np.ndarray,
    disliked: Sequence[np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Return the (users,) ranks, from 1, of each history's last item by the model and by each baseline.

    It is ranked from the items before it, among all items that the user had not seen, as in
    `gpt2.tasks.recommendation.recommend`. Seen items are those before it and each user's `disliked`. `popular` (items,)
    are counts in training. A few users are ranked at a time (`gpt2.tasks.recommendation.hybrid.parts`), so there is
    never a matrix of all users and items.
    """
    before, wanted, n_items = [h[:-1] for h in histories], [int(h[-1]) for h in histories], len(popular)
    seen = before if disliked is None else [np.concatenate(both) for both in zip(before, disliked, strict=True)]
    similar = hybrid.cosines(before, n_items)
    others: dict[str, Scorer] = {
        "popularity": lambda users: np.broadcast_to(popular, (len(users), n_items)),
        "item-kNN": hybrid.item_knn(similar),
        "recent item-kNN": hybrid.recent_item_knn(similar),
        "EASE": hybrid.ease(before, n_items),
    }
    all_ranks: dict[str, list[int]] = {name: [] for name in ("model", *others, "text alone")}
    for some in hybrid.parts(len(before), n_items):
        batch = before[some]
        by_text = predictor.by_text(batch)
        own = {"model": predictor.with_choices(by_text, batch), "text alone": by_text}
        for name, each in all_ranks.items():
            scores = own[name] if name in own else others[name](batch)
            each += [rank_of(*one) for one in zip(scores, wanted[some], seen[some], strict=True)]
    return {name: np.array(each) for name, each in all_ranks.items()}


def recommended(
    predictor: RecommendationPredictor,
    histories: Sequence[np.ndarray],
    items: pd.DataFrame,
    rank: np.ndarray,
    disliked: Sequence[np.ndarray] | None = None,
) -> dict[str, Any]:
    """Return the report's table of example recommendations with reasons, and the users' actual next choices.

    Recommendations are made after all but the last choice of some users. `rank` (users,) are the model's ranks of the
    last choice.
    """
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
        after = "; ".join(titles[i] for i in before[-LATEST:])
        for row in best.itertuples():
            hit = f" This is {NEXT}." if row.item == ids[last] else ""
            rows.append([after if row.rank == 1 else "", row.rank, row.title, row.reason + hit])
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
    other = None  # the catalogue may have changed since the model was trained
    if items["item"].tolist() != predictor.ids:
        other = OtherCatalogue(predictor, items["item"].tolist())
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
        "samples": {"Composition of a score": predictor.score_formula()},
        "figures": [plots.recall(placed, "users whose next choice", out)],
        "cost": report.prediction_cost(predictor, predictor.module, predictor.input_example),
        **unit_results_of(task, predictions).summary(),
    }


def unit_results_of(task: Task, predictions: pd.DataFrame) -> UnitResults:
    """Return the per-unit results of the stored predictions."""
    from gpt2.evaluation import unit_results

    placed = {c.removeprefix("rank_"): predictions[c].to_numpy() for c in predictions if c.startswith("rank_")}
    parts = unit_results.choice_slices(predictions["history"].to_numpy(), predictions["popularity"].to_numpy())
    key = unit_results.key_of(predictions["test_item"], predictions["history"])
    return unit_results.ranking(placed, key, parts)
