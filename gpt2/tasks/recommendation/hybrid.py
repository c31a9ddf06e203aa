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
"""Scores or similarities computed at a time, which bounds memory."""
READ = 64
"""Users scored at a time; fewer if their scores would exceed `CELLS`."""
EASE_ITEMS = 4000
"""Number of items between which EASE learns weights: 128 MB for each matrix."""
Scorer = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Maps histories to (users, items) scores."""


def popularity(histories: Sequence[np.ndarray], n_items: int) -> np.ndarray:
    """Return (items,) counts of the items in all histories."""
    return np.bincount(np.concatenate(histories), minlength=n_items).astype(float)


def chosen(
    histories: Sequence[Sequence[int] | np.ndarray], n_items: int, decay: float = 1.0, last: int | None = None
) -> csr_matrix:
    """Return the sparse (users, items) matrix of choices: decay^k for the item k places before the latest.

    Only the `last` items of a history count.
    """
    from scipy.sparse import csr_matrix

    rows = [np.asarray(h, dtype=int)[::-1][:last] for h in histories]
    lengths = [len(row) for row in rows]
    weights = np.concatenate([decay ** np.arange(n) for n in lengths]).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return csr_matrix((weights, np.concatenate(rows), indptr), shape=(len(rows), n_items))


def parts(users: int, n_items: int) -> Iterator[slice]:
    """Yield slices of the users in order, so small that their scores number at most `CELLS`, or one user's."""
    step = max(1, min(READ, CELLS // n_items))
    for start in range(0, users, step):
        yield slice(start, start + step)


def cosines(histories: Sequence[np.ndarray], n_items: int, neighbours: int = 200) -> csr_matrix:
    """Return the sparse (items, items) cosine similarities by common users (Sarwar et al. 2001, implicit feedback).

    Each row holds the nearest `neighbours` of an item.
    """
    from scipy.sparse import csr_matrix, vstack

    seen = chosen(histories, n_items)
    norms = np.sqrt(np.maximum(np.asarray(seen.sum(0)).ravel(), 1e-9)).astype(np.float32)
    by_item, step, parts = seen.T.tocsr(), max(1, CELLS // n_items), []
    for start in range(0, n_items, step):  # a large catalogue has too many pairs for one matrix
        part = (by_item[start : start + step] @ seen).toarray()
        part /= norms[start : start + step, None] * norms[None, :]
        part[np.arange(len(part)), np.arange(start, start + len(part))] = 0
        if neighbours < n_items:
            part[part < np.partition(part, -neighbours, axis=1)[:, -neighbours][:, None]] = 0
        parts.append(csr_matrix(part))
    return vstack(parts, format="csr")


def item_knn(similar: csr_matrix, decay: float = 1.0, last: int | None = None) -> Scorer:
    """Return the scorer that sums the similarities (`cosines`) to the user's items.

    Only the `last` items count. The item k places before the latest has weight decay^k.
    """
    n_items, others = similar.shape[0], similar.T.tocsr()
    return lambda histories: (chosen(histories, n_items, decay, last) @ others).toarray()


def recent_item_knn(similar: csr_matrix) -> Scorer:
    """Return the scorer `item_knn` over the user's last ten items, with weights 0.8^k."""
    return item_knn(similar, 0.8, last=10)


def ease_weights(histories: Sequence[np.ndarray], n_items: int, strength: float = 100.0) -> tuple[np.ndarray, ...]:
    """Return ((n,) item indices, (n, n) weights) of EASE (Steck 2019); rows are chosen items.

    Only the `EASE_ITEMS` most chosen items are used, since EASE inverts a dense matrix. Rarer items have hardly any
    pairs.
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
    """Return the scorer of EASE, trained on the histories."""
    places, weights = ease_weights(histories, n_items, strength)

    def score(users: Sequence[np.ndarray]) -> np.ndarray:
        scores = np.zeros((len(users), n_items), np.float32)
        scores[:, places] = chosen(users, n_items)[:, places] @ weights
        return scores

    return score


DECAY, LAST = 0.8, 10
"""Decay of an item's weight per later item, and the number of items that count."""
WINDOW, NEAR, NEXT = 20, 0.9, 0.8
"""Distance (places) within which items count as chosen nearby, and the decays of their weights per place."""
NEIGHBOURS = 200
"""Number of neighbours kept for an item."""
USERS_AT_ONCE, SCORES_AT_ONCE = 256, 40_000_000
"""Most users whose choices are fitted, and most feature values of theirs in memory."""
POPULAR = ("popularity", "recent popularity")
RECENT = ("chosen by the same", "chosen nearby", "chosen before")
FILE = "neighbours.safetensors"


@dataclass(frozen=True)
class Hybrid:
    """A fitted hybrid, ready to score."""

    weights: Mapping[str, float]
    """Weights of the model's score and of each feature."""
    popular: np.ndarray
    """(items,) contributions of popularity to the scores."""
    recent: csr_matrix
    """Sparse (items, items): contributions of one of the last items (row) to the scores."""
    whole: csr_matrix
    """Sparse (items, items): contributions of any chosen item (row) to the scores."""

    def scores(self, model: np.ndarray, histories: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """Return (histories, items) hybrid scores from the model's; those of empty histories stay unchanged."""
        scores, known = np.array(model, dtype=np.float32), np.array([len(h) > 0 for h in histories])
        n_items = len(self.popular)
        scores[known] = self.weights["model"] * scores[known] + self.popular
        scores += (chosen(histories, n_items, DECAY, LAST) @ self.recent).toarray()
        scores += (chosen(histories, n_items) @ self.whole).toarray()
        return scores

    def save(self, directory: Path) -> None:
        """Write `FILE` to a directory, without the weights, which the caller stores."""
        import torch
        from safetensors.torch import save_file

        arrays = {"popular": self.popular}
        for name, each in (("recent", self.recent), ("whole", self.whole)):
            arrays |= {f"{name}.starts": each.indptr.astype(np.int32), f"{name}.items": each.indices.astype(np.int32)}
            arrays[f"{name}.values"] = each.data.astype(np.float32)
        save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, directory / FILE)

    @classmethod
    def load(cls, directory: Path, weights: Mapping[str, float], n_items: int) -> Hybrid:
        """Return the hybrid that `save` wrote; raise `ValueError` if the file is invalid or of another catalogue."""
        from scipy.sparse import csr_matrix

        from gpt2.weights import tensors as weights_tensors

        path = directory / FILE
        tensors = weights_tensors.read(path)
        weights_tensors.finite(path, tensors)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        try:
            parts, shape = ("values", "items", "starts"), (n_items, n_items)
            both = [csr_matrix(tuple(arrays[f"{n}.{p}"] for p in parts), shape) for n in ("recent", "whole")]
            for each in both:
                each.check_format()
            if arrays["popular"].shape != (n_items,):
                raise ValueError(f"'popular' is {arrays['popular'].shape}")
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} does not fit a catalogue of {n_items:,} items: {error}") from None
        return cls(weights, arrays["popular"], *both)


def fit(
    score: Callable[[Sequence[np.ndarray]], np.ndarray], histories: Sequence[np.ndarray], items: pd.DataFrame
) -> Hybrid:
    """Return the hybrid of a model whose (histories, items) scores `score` computes.

    `histories` end with the validation choice, on which the weights are fitted. All features, and `popularity` and
    `recent` of the `items`, come from the choices before it.
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
    scales = np.where(spreads > 1e-6 * (1 + np.abs(middles)), spreads, 1.0)  # a constant feature has no effect
    allowed = all_of_them.toarray() == 0
    start = np.zeros(len(names))
    start[0] = scales[0]  # the model alone
    parts = [(c - m) / s for c, m, s in zip(columns, middles, scales, strict=True)]
    features = np.stack(parts, axis=-1).astype(np.float32)
    weights = dict(zip(names, (logit(features, allowed, wanted[users], start) / scales).tolist(), strict=True))
    of_recent, *others = [weights[name] * relations[name] for name in RECENT]
    for other in others:
        of_recent = of_recent + other
    adds = (weights[POPULAR[0]] * popular[0] + weights[POPULAR[1]] * popular[1]).astype(np.float32)
    return Hybrid(weights, adds, of_recent.tocsr(), (weights["EASE"] * relations["EASE"]).tocsr())


def logit(features: np.ndarray, allowed: np.ndarray, wanted: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the (features,) maximum a posteriori weights of a conditional logit.

    The choices `wanted` (users,) are among the `allowed` items (users, items), with the softmax of (users, items,
    features) times weights. The prior of the weights is normal around `start` with standard deviation 1.
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
    """Return the sparse (items, items) matrix of each feature: from a chosen item (row) to the others."""
    forward = following(histories, n_items, WINDOW, NEAR)
    return {
        "chosen by the same": cosines(histories, n_items, NEIGHBOURS).T.tocsr(),
        "chosen nearby": nearest(normalised(forward + forward.T, histories)),
        "chosen before": nearest(normalised(following(histories, n_items, WINDOW // 2, NEXT), histories)),
        "EASE": strongest(histories, n_items),
    }


def following(histories: Sequence[np.ndarray], n_items: int, window: int, decay: float) -> csr_matrix:
    """Return the sparse (items, items) counts of the row's item chosen before the column's within `window` places.

    Each occurrence counts decay^(places - 1).
    """
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
    """Return counts of pairs divided by the square roots of both items' counts, each plus one."""
    from scipy.sparse import diags

    roots = diags(1 / np.sqrt(np.bincount(np.concatenate(histories), minlength=counts.shape[0]) + 1.0))
    return (roots @ counts @ roots).astype(np.float32).tocsr()


def nearest(matrix: csr_matrix) -> csr_matrix:
    """Return the matrix with only the `NEIGHBOURS` largest values of each column."""
    kept = matrix.tocsc(copy=True)
    for start, end in zip(kept.indptr[:-1], kept.indptr[1:], strict=True):
        values = kept.data[start:end]
        if len(values) > NEIGHBOURS:
            values[values < np.partition(values, -NEIGHBOURS)[-NEIGHBOURS]] = 0
    kept.eliminate_zeros()
    return kept.tocsr()


def strongest(histories: Sequence[np.ndarray], n_items: int) -> csr_matrix:
    """Return the weights of EASE, with only the `NEIGHBOURS` largest absolute values of each column."""
    from scipy.sparse import csr_matrix

    places, weights = ease_weights(histories, n_items)
    if len(places) > NEIGHBOURS:
        size = np.abs(weights)
        weights[size < np.partition(size, -NEIGHBOURS, axis=0)[-NEIGHBOURS]] = 0
    rows, columns = np.nonzero(weights)
    values = weights[rows, columns].astype(np.float32)
    return csr_matrix((values, (places[rows], places[columns])), shape=(n_items, n_items))
