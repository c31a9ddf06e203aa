"""Recommenders from choices alone (popularity, item-kNN, EASE), as baselines and joined to the model's score.

Score of an item = weight x model's score + weights x scores from choices. The weights are those of a conditional
logit (McFadden 1974): the choices of the validation split's users among all items that they had not chosen yet. A prior
holds them at the model alone, so that few choices change little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix

CELLS = 8_000_000
"""Scores or similarities computed at a time, which bounds the memory."""
READ = 64
"""Users whose items are scored at a time; fewer where the catalogue has more than `CELLS` items for so many."""
EASE_ITEMS = 4000
"""Items between which EASE learns weights: 128 MB for each table of them."""
Scorer = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Histories to (users, items) scores."""


def popularity(histories: Sequence[np.ndarray], n_items: int) -> np.ndarray:
    """(items,) counts of the items in all histories."""
    return np.bincount(np.concatenate(histories), minlength=n_items).astype(float)


def chosen(
    histories: Sequence[Sequence[int] | np.ndarray], n_items: int, decay: float = 1.0, last: int | None = None
) -> csr_matrix:
    """(users, items), sparse: decay^k for what was chosen k items before the latest, of the `last` ones alone."""
    from scipy.sparse import csr_matrix

    rows = [np.asarray(h, dtype=int)[::-1][:last] for h in histories]
    lengths = [len(row) for row in rows]
    weights = np.concatenate([decay ** np.arange(n) for n in lengths]).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return csr_matrix((weights, np.concatenate(rows), indptr), shape=(len(rows), n_items))


def parts(users: int, n_items: int) -> Iterator[slice]:
    """The users in order, so few at a time that no table of their scores has more than `CELLS`, or one user's."""
    step = max(1, min(READ, CELLS // n_items))
    for start in range(0, users, step):
        yield slice(start, start + step)


def cosines(histories: Sequence[np.ndarray], n_items: int, neighbours: int = 200) -> csr_matrix:
    """(items, items), sparse: to each item, in its row, the cosine similarities of the nearest others by who chose
    them. Sarwar et al. 2001, on implicit feedback."""
    from scipy.sparse import csr_matrix, vstack

    seen = chosen(histories, n_items)
    norms = np.sqrt(np.maximum(np.asarray(seen.sum(0)).ravel(), 1e-9)).astype(np.float32)
    by_item, step, parts = seen.T.tocsr(), max(1, CELLS // n_items), []
    for start in range(0, n_items, step):  # never all pairs at once: a large catalogue has too many
        part = (by_item[start : start + step] @ seen).toarray()
        part /= norms[start : start + step, None] * norms[None, :]
        part[np.arange(len(part)), np.arange(start, start + len(part))] = 0
        if neighbours < n_items:
            part[part < np.partition(part, -neighbours, axis=1)[:, -neighbours][:, None]] = 0
        parts.append(csr_matrix(part))
    return vstack(parts, format="csr")


def item_knn(similar: csr_matrix, decay: float = 1.0, last: int | None = None) -> Scorer:
    """The sum of the similarities (`cosines`) to the user's items, of the `last` ones alone, decay^k for the one k
    before the latest."""
    n_items, others = similar.shape[0], similar.T.tocsr()
    return lambda histories: (chosen(histories, n_items, decay, last) @ others).toarray()


def recent_item_knn(similar: csr_matrix) -> Scorer:
    """The same over the user's last ten items, with weights 0.8^k."""
    return item_knn(similar, 0.8, last=10)


def ease_weights(histories: Sequence[np.ndarray], n_items: int, strength: float = 100.0) -> tuple[np.ndarray, ...]:
    """(items' indices (n,), weights (n, n) from a chosen item, the row, to another) of EASE (Steck 2019).

    Of the `EASE_ITEMS` most chosen items, as it inverts a dense matrix: beyond them there is hardly a pair to learn
    from.
    """
    seen = chosen(histories, n_items)
    places = np.sort(np.argsort(-np.asarray(seen.sum(0)).ravel(), kind="stable")[:EASE_ITEMS])
    kept = seen[:, places]
    gram = (kept.T @ kept).toarray().astype(float)
    gram[np.diag_indices(len(gram))] += strength
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return places, weights


def ease(histories: Sequence[np.ndarray], n_items: int, strength: float = 100.0) -> Scorer:
    """EASE, of what was chosen in the histories."""
    places, weights = ease_weights(histories, n_items, strength)

    def score(asked: Sequence[np.ndarray]) -> np.ndarray:
        scores = np.zeros((len(asked), n_items), np.float32)
        scores[:, places] = chosen(asked, n_items)[:, places] @ weights
        return scores

    return score


DECAY, LAST = 0.8, 10
"""How much less an item counts for each that was chosen after it, and how many count."""
WINDOW, NEAR, NEXT = 20, 0.9, 0.8
"""Items so many places apart are chosen near each other; by how much a place more counts less."""
NEIGHBOURS = 200
"""What is kept for an item: those closest to it."""
USERS_AT_ONCE, SCORES_AT_ONCE = 256, 40_000_000
"""Users whose choices are fitted, and features of theirs at once."""
POPULAR = ("popularity", "recent popularity")
RECENT = ("chosen by the same", "chosen nearby", "chosen before")
FILE = "neighbours.safetensors"


@dataclass(frozen=True)
class Hybrid:
    """Fitted, and ready to score."""

    weights: Mapping[str, float]
    """Of the model's score and of each feature."""
    popular: np.ndarray
    """(items,) what popularity adds to the score of each."""
    recent: csr_matrix
    """(items, items), sparse: what one of the last items, in the row, adds to each."""
    whole: csr_matrix
    """(items, items), sparse: what any item that was chosen, in the row, adds to each."""

    def scores(self, model: np.ndarray, histories: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """(histories, items) scores from the model's, which stay as they are where a history is empty."""
        found, known = np.array(model, dtype=np.float32), np.array([len(h) > 0 for h in histories])
        n_items = len(self.popular)
        found[known] = self.weights["model"] * found[known] + self.popular
        found += (chosen(histories, n_items, DECAY, LAST) @ self.recent).toarray()
        found += (chosen(histories, n_items) @ self.whole).toarray()
        return found

    def save(self, directory: Path) -> None:
        """Write `FILE`; the weights are for the caller to keep."""
        import torch
        from safetensors.torch import save_file

        found = {"popular": self.popular}
        for name, each in (("recent", self.recent), ("whole", self.whole)):
            found |= {f"{name}.starts": each.indptr.astype(np.int32), f"{name}.items": each.indices.astype(np.int32)}
            found[f"{name}.values"] = each.data.astype(np.float32)
        save_file({name: torch.from_numpy(array) for name, array in found.items()}, directory / FILE)

    @classmethod
    def load(cls, directory: Path, weights: Mapping[str, float], n_items: int) -> Hybrid:
        """What `save` wrote; `ValueError` where the file is none, or of another catalogue."""
        from scipy.sparse import csr_matrix

        from gpt2.weights import tensors as weights_tensors

        path = directory / FILE
        tensors = weights_tensors.read(path)
        weights_tensors.finite(path, tensors)
        found = {name: tensor.numpy() for name, tensor in tensors.items()}
        try:
            parts, shape = ("values", "items", "starts"), (n_items, n_items)
            both = [csr_matrix(tuple(found[f"{n}.{p}"] for p in parts), shape) for n in ("recent", "whole")]
            for each in both:
                each.check_format()
            if found["popular"].shape != (n_items,):
                raise ValueError(f"'popular' is {found['popular'].shape}")
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} does not fit a catalogue of {n_items:,} items: {error}") from None
        return cls(weights, found["popular"], *both)


def fit(
    score: Callable[[Sequence[np.ndarray]], np.ndarray], histories: Sequence[np.ndarray], items: pd.DataFrame
) -> Hybrid:
    """The hybrid of a model whose (histories, items) scores are `score`'s.

    `histories` end with the validation's choice, on which the weights are fitted; all else is of what was before it,
    and so are `popularity` and `recent` of the `items`.
    """
    n_items = len(items)
    popular = [np.log1p(items[name].to_numpy(float)) for name in ("popularity", "recent")]
    before, wanted = [h[:-1] for h in histories], np.array([h[-1] for h in histories])
    names = ("model", *POPULAR, *RECENT, "EASE")
    most = max(1, min(USERS_AT_ONCE, SCORES_AT_ONCE // (n_items * len(names))))
    users = np.unique(np.linspace(0, len(histories) - 1, most).astype(int))
    read = [before[u] for u in users]
    relations = related(before, n_items)
    recent, all_of_them = chosen(read, n_items, DECAY, LAST), chosen(read, n_items)
    columns = [np.asarray(score(read)), *(np.broadcast_to(p, (len(read), n_items)) for p in popular)]
    columns += [(recent @ relations[name]).toarray() for name in RECENT]
    columns.append((all_of_them @ relations["EASE"]).toarray())
    middles = np.array([column.mean(dtype=float) for column in columns])
    spreads = np.array([column.std(dtype=float) for column in columns])
    scales = np.where(spreads > 1e-6 * (1 + np.abs(middles)), spreads, 1.0)  # what is the same for all says nothing
    allowed = all_of_them.toarray() == 0
    start = np.zeros(len(names))
    start[0] = scales[0]  # the model as it is
    parts = [(c - m) / s for c, m, s in zip(columns, middles, scales, strict=True)]
    features = np.stack(parts, axis=-1).astype(np.float32)
    weights = dict(zip(names, (logit(features, allowed, wanted[users], start) / scales).tolist(), strict=True))
    of_recent, *others = [weights[name] * relations[name] for name in RECENT]
    for other in others:
        of_recent = of_recent + other
    adds = (weights[POPULAR[0]] * popular[0] + weights[POPULAR[1]] * popular[1]).astype(np.float32)
    return Hybrid(weights, adds, of_recent.tocsr(), (weights["EASE"] * relations["EASE"]).tocsr())


def logit(features: np.ndarray, allowed: np.ndarray, wanted: np.ndarray, start: np.ndarray) -> np.ndarray:
    """(features,) weights of most probability: of the choice `wanted` (users,) among the `allowed` (users, items), by
    the softmax of (users, items, features) times weights, and of the weights, normal around `start` with deviation 1.
    """
    from scipy.optimize import minimize

    users, mean_wanted = np.arange(len(wanted)), features[np.arange(len(wanted)), wanted].mean(0)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = np.where(allowed, features @ weights.astype(np.float32), -np.inf).astype(float)
        scores -= scores.max(1, keepdims=True)
        chances = np.exp(scores)
        totals = chances.sum(1, keepdims=True)
        value = np.log(totals).mean() - scores[users, wanted].mean()
        chances = (chances / totals / len(users)).astype(np.float32)
        slope = np.tensordot(chances, features, axes=2) - mean_wanted
        far = weights - start
        return value + far @ far / (2 * len(users)), slope.astype(float) + far / len(users)

    return minimize(loss, start, jac=True, method="L-BFGS-B").x


def related(histories: Sequence[np.ndarray], n_items: int) -> dict[str, csr_matrix]:
    """What a chosen item, in the row, says of each other: (items, items) by feature."""
    forward = following(histories, n_items, WINDOW, NEAR)
    return {
        "chosen by the same": cosines(histories, n_items, NEIGHBOURS).T.tocsr(),
        "chosen nearby": nearest(normalised(forward + forward.T, histories)),
        "chosen before": nearest(normalised(following(histories, n_items, WINDOW // 2, NEXT), histories)),
        "EASE": strongest(histories, n_items),
    }


def following(histories: Sequence[np.ndarray], n_items: int, window: int, decay: float) -> csr_matrix:
    """(items, items), sparse: how often the item in the row was chosen before that in the column, within `window`
    places; decay^(places - 1) for each time."""
    from scipy.sparse import csr_matrix

    users = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    items, total = np.concatenate(histories), csr_matrix((n_items, n_items), dtype=np.float32)
    for gap in range(1, window + 1):
        same = users[:-gap] == users[gap:]
        pair = items[:-gap][same], items[gap:][same]
        weights = np.full(len(pair[0]), decay ** (gap - 1), dtype=np.float32)
        total = total + csr_matrix((weights, pair), shape=total.shape)
    return total


def normalised(counts: csr_matrix, histories: Sequence[np.ndarray]) -> csr_matrix:
    """Counts of pairs divided by the roots of how often each of the two was chosen, one added to each."""
    from scipy.sparse import diags

    roots = diags(1 / np.sqrt(np.bincount(np.concatenate(histories), minlength=counts.shape[0]) + 1.0))
    return (roots @ counts @ roots).astype(np.float32).tocsr()


def nearest(matrix: csr_matrix) -> csr_matrix:
    """For each column the largest values, `NEIGHBOURS` of them at most; the others are dropped."""
    found = matrix.tocsc(copy=True)
    for start, end in zip(found.indptr[:-1], found.indptr[1:], strict=True):
        values = found.data[start:end]
        if len(values) > NEIGHBOURS:
            values[values < np.partition(values, -NEIGHBOURS)[-NEIGHBOURS]] = 0
    found.eliminate_zeros()
    return found.tocsr()


def strongest(histories: Sequence[np.ndarray], n_items: int) -> csr_matrix:
    """The weights of EASE, for each item the largest either way."""
    from scipy.sparse import csr_matrix

    places, weights = ease_weights(histories, n_items)
    if len(places) > NEIGHBOURS:
        size = np.abs(weights)
        weights[size < np.partition(size, -NEIGHBOURS, axis=0)[-NEIGHBOURS]] = 0
    rows, columns = np.nonzero(weights)
    values = weights[rows, columns].astype(np.float32)
    return csr_matrix((values, (places[rows], places[columns])), shape=(n_items, n_items))
