"""Results of every system on every unit of an evaluation; slices of a test set; truncated texts.

`UnitResults` is made from a report's stored predictions alone, by the task that wrote them. Intervals, slices and the
gate's verdict are computed from it, so a verdict can be computed again. Slices are parts of a test set that a mean may
hide: by length, class, topic, history, popularity. Texts longer than the context are counted and reported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2.data.text import topics_of
from gpt2.evaluation.metrics import bin_of, f1_scores
from gpt2.evaluation.significance import DRAWS, Bootstrap, Method, Metric, beside, mcnemar

if TYPE_CHECKING:
    import pandas as pd

    from gpt2.data.tokenizer import Tokenizer

Slices = dict[str, np.ndarray]

WORDS, TOPICS = (5, 10, 20, 40), 8
RARE, RARE_GIVEN = 50, 10
"""Topics of fewer texts are no part: of those that texts name, and of those in a column, where somebody asked for them.
"""


def of_texts(
    texts: Sequence[str], classes: np.ndarray, labels: Sequence[str], topics: Sequence[str | None] | None = None
) -> Slices:
    """By true class, by length in words, and by the most frequent topics: those given, or those that texts name."""
    found: Slices = {f"class: {label}": classes == i for i, label in enumerate(labels)}
    found |= bins("words", np.array([len(text.split()) for text in texts]), WORDS)
    if topics is None:
        each, least = [topics_of(text) for text in texts], RARE
    else:
        each, least = [[topic] if topic else [] for topic in topics], RARE_GIVEN
    counts = Counter(topic for row in each for topic in row)
    frequent = [topic for topic, count in counts.most_common(TOPICS) if count >= least]
    return found | {f"topic: {topic}": np.array([topic in row for row in each]) for topic in frequent}


def bins(name: str, values: np.ndarray, edges: Sequence[int]) -> Slices:
    """The (n,) whole numbers in bins that end at each edge; those that hold none are left out."""
    lower = [None, *edges]
    upper = [*edges, None]
    found: Slices = {}
    for low, high in zip(lower, upper, strict=True):
        inside = np.ones(len(values), dtype=bool)
        if low is not None:
            inside &= values > low
        if high is not None:
            inside &= values <= high
        told = f"over {low:,}" if high is None else f"up to {high:,}" if low is None else f"{low + 1:,} to {high:,}"
        found[f"{name}: {told}"] = inside
    return {name: inside for name, inside in found.items() if inside.any()}


def of_choices(history_lengths: np.ndarray, popularity: np.ndarray) -> Slices:
    """Of users who chose an item: by how many items they had before, and how often the item was chosen in training."""
    cold: Slices = {"item: never seen in training": popularity == 0}
    warm: Mapping[str, np.ndarray] = bins("item chosen", np.where(popularity == 0, 1, popularity), (10, 50, 200))
    known = {name: inside & (popularity > 0) for name, inside in warm.items()}
    return cold | known | bins("history", history_lengths, (20, 50, 100, 200))


MODEL = "model"
UNKNOWN = "unknown_items"
"""Of a recommender's report: items of the catalogue that it was measured on, but does not know."""
BINS = 15


@dataclass(frozen=True)
class UnitResults:
    """The same units, answered by the model and by each baseline."""

    unit: str
    """What is independent of the others: post, user, document."""
    key: str
    """Equal for the same units with the same truth, in the same order."""
    systems: Mapping[str, np.ndarray]
    """(n, k) columns of the model (`MODEL`) and of each baseline."""
    metrics: Mapping[str, Metric]
    """Metrics as functions of the columns' sums."""
    primary: str
    higher_is_better: bool
    slice_metric: str
    """The metric that has a meaning within any part of the units."""
    slices: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(n,) which units belong to each part."""
    inflated: tuple[str, ...] = ()
    """Metrics that resampling makes larger."""
    hits: Mapping[str, np.ndarray] | None = None
    """(n,) whether each system was right, where that is how it is."""
    needed: int | None = None
    """How many columns, the first, the primary and the slices' metric need, where others are beside them."""

    def __len__(self) -> int:
        return len(self.systems[MODEL])

    @property
    def width(self) -> int:
        return self.systems[MODEL].shape[1]

    def method(self, metric: str) -> Method:
        """How its interval is made."""
        return "basic" if metric in self.inflated else "bca"

    def value(self, metric: str, system: str = MODEL) -> float:
        return float(self.metrics[metric](self.systems[system].sum(0)))

    def part(self, name: str) -> UnitResults:
        """The units of a slice."""
        inside = self.slices[name]
        hits = {n: h[inside] for n, h in self.hits.items()} if self.hits else None
        return replace(self, systems={n: s[inside] for n, s in self.systems.items()}, slices={}, hits=hits)

    def lean(self) -> UnitResults:
        """Of the primary and the slices' metric alone, which are quicker to draw."""
        systems = {name: columns[:, : self.needed] for name, columns in self.systems.items()}
        metrics = {name: self.metrics[name] for name in (self.primary, self.slice_metric)}
        return replace(self, systems=systems, metrics=metrics)

    def against(self, other: UnitResults, name: str) -> UnitResults:
        """With another model's answers to the same units beside one's own; `ValueError` where they are not the same."""
        if self.key != other.key:
            raise ValueError(f"{name} was measured on other {self.unit}s; measure it on the same ones")
        hits = {**self.hits, name: other.hits[MODEL]} if self.hits and other.hits else None
        return replace(self, systems={**self.systems, name: other.systems[MODEL]}, hits=hits)

    @cached_property
    def drawn(self) -> Bootstrap:
        """All systems' columns, drawn together."""
        return Bootstrap(np.concatenate(list(self.systems.values()), axis=1), DRAWS)

    def place(self, system: str) -> slice:
        """A system's columns among all."""
        start = list(self.systems).index(system) * self.width
        return slice(start, start + self.width)

    def of(self, metric: str, system: str = MODEL) -> Metric:
        """A system's metric as a function of all columns' sums."""
        place, function = self.place(system), self.metrics[metric]
        return lambda sums: function(sums[..., place])

    def gain(self, metric: str, system: str) -> Metric:
        """By how much the model is better than a system, whichever direction is better for the metric."""
        difference = beside(self.metrics[metric], self.place(MODEL), self.place(system))
        return difference if self.better_up(metric) else lambda sums: -difference(sums)

    def better_up(self, metric: str) -> bool:
        return not metric.startswith(("calibration_error", "loss", "perplexity", "bits_per_byte"))

    def summary(self) -> dict[str, Any]:
        """What a report says besides the values: `unit`, `intervals`, `differences` to the baselines, `slices`."""
        intervals = {
            system: {m: bounded(self.drawn.interval(self.of(m, system), self.method(m))) for m in self.metrics}
            for system in self.systems
        }
        differences = {name: self.difference(name) for name in self.systems if name != MODEL}
        slices = [self.slice(name) for name, inside in self.slices.items() if inside.any()]
        facts = {"unit": self.unit, "units": len(self), "intervals": intervals, "differences": differences}
        return {**facts, "slice_metric": self.slice_metric, "slices": slices}

    def difference(self, system: str) -> dict[str, dict[str, Any]]:
        """The model's value less the system's by metric: `value`, `interval`, the `probability` that the model is
        better, and of what is right or wrong the exact `p` of McNemar."""
        found: dict[str, dict[str, Any]] = {}
        for name, metric in self.metrics.items():
            gain = beside(metric, self.place(MODEL), self.place(system))
            found[name] = {
                "value": self.drawn.value(gain),
                "interval": list(self.drawn.interval(gain, self.method(name))),
                "probability": self.drawn.probability(self.gain(name, system)),
            }
        if self.hits and "accuracy" in found:
            found["accuracy"]["p"] = mcnemar(self.hits[MODEL], self.hits[system])
        return found

    def slice(self, name: str) -> dict[str, Any]:
        """A row of the report's slices."""
        part, metric = self.part(name), self.slice_metric
        low, high = part.drawn.interval(part.of(metric))
        interval = [low, high] if high > low else None  # all its units are alike: drawing them tells nothing
        values = {system: part.value(metric, system) for system in self.systems if system != MODEL}
        return {
            "slice": name, "units": len(part), "value": part.value(metric), "interval": interval, "baselines": values
        }  # fmt: skip


def bounded(interval: tuple[float, float]) -> list[float]:
    """No metric here is below 0."""
    return [max(0.0, bound) for bound in interval]


def key_of(*columns: Any) -> str:
    """What the units are, as a hash."""
    mark = blake2b(digest_size=8)
    for column in columns:
        for value in column:
            mark.update(f"{value}\0".encode("utf-8", "surrogatepass"))
    return mark.hexdigest()


Answers = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Of each system the (n,) predicted classes and how sure it was of each."""


def labelled(predictions: pd.DataFrame) -> tuple[list[str], Answers]:
    """(labels, answers) of a table with `predicted`, `confidence`, a `probability_LABEL` for each label, and `predicted
    by NAME` and `confidence of NAME` for each baseline."""
    labels = [c.removeprefix("probability_") for c in predictions if c.startswith("probability_")]
    answers = {MODEL: (predictions["predicted"].to_numpy(), predictions["confidence"].to_numpy())}
    for name in [c.removeprefix("predicted by ") for c in predictions if c.startswith("predicted by ")]:
        columns = (predictions[f"predicted by {name}"], predictions[f"confidence of {name}"])
        answers[name] = (columns[0].to_numpy(), columns[1].to_numpy())
    return labels, answers


def classification(
    truth: np.ndarray,
    answers: Answers,
    labels: Sequence[str],
    key: str,
    slices: Mapping[str, np.ndarray],
    unit: str = "post",
) -> UnitResults:
    """Metrics as in `gpt2.evaluation.metrics.classification`."""
    classes, cells = len(labels), len(labels) ** 2

    def columns(predicted: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(truth), cells + BINS))
        at = np.arange(len(truth))
        rows[at, truth * classes + predicted] = 1
        rows[at, cells + bin_of(confidence, BINS)] = confidence - (predicted == truth)
        return rows

    def matrix(sums: np.ndarray) -> np.ndarray:
        return sums[..., :cells].reshape(*sums.shape[:-1], classes, classes)

    def hits(sums: np.ndarray) -> np.ndarray:
        return np.diagonal(matrix(sums), axis1=-2, axis2=-1)

    metrics: dict[str, Metric] = {
        "macro_f1": lambda s: f1_scores(matrix(s)).mean(-1),
        "accuracy": lambda s: hits(s).sum(-1) / np.maximum(matrix(s).sum((-2, -1)), 1),
        "calibration_error": lambda s: np.abs(s[..., cells:]).sum(-1) / np.maximum(matrix(s).sum((-2, -1)), 1),
    }

    def of_class(i: int) -> list[Metric]:
        return [
            lambda s: hits(s)[..., i] / np.maximum(matrix(s).sum(-2)[..., i], 1),
            lambda s: hits(s)[..., i] / np.maximum(matrix(s).sum(-1)[..., i], 1),
            lambda s: f1_scores(matrix(s))[..., i],
        ]

    for i, label in enumerate(labels):
        names = (f"precision_{label}", f"recall_{label}", f"f1_{label}")
        metrics |= dict(zip(names, of_class(i), strict=True))
    systems = {name: columns(*answer) for name, answer in answers.items()}
    right = {name: predicted == truth for name, (predicted, _) in answers.items()}
    inflated = ("calibration_error",)
    return UnitResults(unit, key, systems, metrics, "macro_f1", True, "accuracy", slices, inflated, right, cells)


def ranking(
    ranks: Mapping[str, np.ndarray], key: str, slices: Mapping[str, np.ndarray], unit: str = "user", k: int = 10
) -> UnitResults:
    """`ranks`: of each system the (n,) ranks, from 1, of the one right item. Metrics as in
    `gpt2.evaluation.metrics.ranking`."""

    def columns(rank: np.ndarray) -> np.ndarray:
        inside = rank <= k
        return np.stack([inside / np.log2(rank + 1.0), inside, 1 / rank, np.ones(len(rank))], axis=1)

    def share(column: int) -> Metric:
        return lambda s: s[..., column] / np.maximum(s[..., 3], 1)

    metrics = {f"ndcg_at_{k}": share(0), f"recall_at_{k}": share(1), "mrr": share(2)}
    systems = {name: columns(rank) for name, rank in ranks.items()}
    return UnitResults(unit, key, systems, metrics, f"ndcg_at_{k}", True, f"ndcg_at_{k}", slices)


def language_model(
    nll: Mapping[str, np.ndarray], tokens: np.ndarray, size: np.ndarray, part: np.ndarray, key: str, unit: str
) -> UnitResults:
    """`nll`: of each system the (n,) negative log-likelihoods (nats) of documents with so many tokens and UTF-8 bytes,
    of the named parts. Metrics as in `gpt2.evaluation.metrics.language_model`."""
    parts = list(dict.fromkeys(part.tolist()))

    def columns(values: np.ndarray) -> np.ndarray:
        return np.concatenate([np.stack([values, tokens, size], axis=1) * (part == p)[:, None] for p in parts], axis=1)

    def loss(s: np.ndarray) -> np.ndarray:
        return s[..., 0::3].sum(-1) / np.maximum(s[..., 1::3].sum(-1), 1)

    def bits(nats: np.ndarray, octets: np.ndarray) -> np.ndarray:
        return nats / math.log(2) / np.maximum(octets, 1e-9)

    metrics: dict[str, Metric] = {
        "loss": loss,
        "perplexity": lambda s: np.exp(np.minimum(loss(s), 700)),
        "bits_per_byte": lambda s: bits(s[..., 0::3].sum(-1), s[..., 2::3].sum(-1)),
    }

    def of_part(i: int) -> Metric:
        return lambda s: bits(s[..., 3 * i], s[..., 3 * i + 2])

    if len(parts) > 1:
        metrics |= {f"bits_per_byte_{p}": of_part(i) for i, p in enumerate(parts)}
    systems = {name: columns(values) for name, values in nll.items()}
    return UnitResults(unit, key, systems, metrics, "bits_per_byte", False, "bits_per_byte")


MANY = 0.05
"""A share of cut texts above which a run's log warns."""


def longer(tokenizer: Tokenizer, texts: Sequence[str], room: int) -> list[bool]:
    """Of each text whether it has more than `room` tokens. A token is a byte or more: short texts need no encoding."""
    asked = [i for i, text in enumerate(texts) if len(text.encode("utf-8", "surrogatepass")) > room]
    found = [False] * len(texts)
    for i, ids in zip(asked, tokenizer.encode_batch([texts[i] for i in asked]), strict=True):
        found[i] = len(ids) > room
    return found


def counted(tokenizer: Tokenizer, texts: Sequence[str], context: int) -> dict[str, int]:
    """`texts`, and how many of these are `cut`, as with an end-of-text they do not fit into `tokens`, the context."""
    return {"texts": len(texts), "cut": sum(longer(tokenizer, texts, context - 1)), "tokens": context}


def sentence(cut: Mapping[str, Mapping[str, int]]) -> str:
    """What a report says of `counted` by what they are, such as "held-out texts"."""
    told = []
    for name, counts in cut.items():
        texts, some, context = counts["texts"], counts["cut"], f"{counts['tokens']:,} tokens"
        fit = f"do{'es' * (some == 1)} not fit into {context} and {'was' if some == 1 else 'were'} cut there"
        share = f" ({some / texts:.1%})" if 1000 * some >= texts > 0 else ""
        cut_off = f"{some:,} of {texts:,} {name}{share} {fit}"
        told.append(cut_off if some else f"all {texts:,} {name} fit into {context}")
    whole = "; ".join(told)
    return f"{whole[0].upper()}{whole[1:]}."


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Of a written report with `cut`: what a run's log must warn of."""
    cut = report.get("cut", {})
    if not any(counts["cut"] > MANY * counts["texts"] for counts in cut.values()):
        return []
    return [
        f"{report['task']}: {sentence(cut)} A longer context (train.context, model.n_positions) reads more of them."
    ]
