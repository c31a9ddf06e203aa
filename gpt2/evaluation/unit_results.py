"""Per-unit results of an evaluation; slices of a test set; truncated texts.

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

from gpt2.data.text import has_characters, mostly_characters, topics_of, words
from gpt2.evaluation.metrics import bin_of, f1_scores
from gpt2.evaluation.significance import DRAWS, Bootstrap, Method, Metric, beside, mcnemar

if TYPE_CHECKING:
    import pandas as pd

    from gpt2.data.tokenizer import Tokenizer

Slices = dict[str, np.ndarray]

WORDS, TOPICS = (5, 10, 20, 40), 8
RARE, RARE_GIVEN = 50, 10
"""Fewest texts of a topic that becomes a slice: of topics named in the texts, and of topics given in a column."""


def text_slices(
    texts: Sequence[str], classes: np.ndarray, labels: Sequence[str], topics: Sequence[str | None] | None = None
) -> Slices:
    """Return the slices of texts by true class, length in words, and the most frequent topics, given or named in texts.

    In scripts without spaces the length is in characters. Each slice is an (n,) mask.
    """
    slices: Slices = {f"class: {label}": classes == i for i, label in enumerate(labels)}
    lengths = np.array([len(words(text) if has_characters(text) else text.split()) for text in texts])
    slices |= bins("characters" if mostly_characters(texts) else "words", lengths, WORDS)
    if topics is None:
        each, least = [topics_of(text) for text in texts], RARE
    else:
        each, least = [[topic] if topic else [] for topic in topics], RARE_GIVEN
    counts = Counter(topic for row in each for topic in row)
    frequent = [topic for topic, count in counts.most_common(TOPICS) if count >= least]
    return slices | {f"topic: {topic}": np.array([topic in row for row in each]) for topic in frequent}


def bins(name: str, values: np.ndarray, edges: Sequence[int]) -> Slices:
    """Return the slices of (n,) integers in bins that end at each edge; empty bins are left out."""
    lower = [None, *edges]
    upper = [*edges, None]
    slices: Slices = {}
    for low, high in zip(lower, upper, strict=True):
        inside = np.ones(len(values), dtype=bool)
        if low is not None:
            inside &= values > low
        if high is not None:
            inside &= values <= high
        words = f"over {low:,}" if high is None else f"up to {high:,}" if low is None else f"{low + 1:,} to {high:,}"
        slices[f"{name}: {words}"] = inside
    return {name: inside for name, inside in slices.items() if inside.any()}


def choice_slices(history_lengths: np.ndarray, popularity: np.ndarray) -> Slices:
    """Return the slices of users by the (n,) lengths of their histories and by the (n,) popularity of the next item.

    Popularity is how often the item was chosen in training.
    """
    cold: Slices = {"item: never seen in training": popularity == 0}
    warm: Mapping[str, np.ndarray] = bins("item chosen", np.where(popularity == 0, 1, popularity), (10, 50, 200))
    known = {name: inside & (popularity > 0) for name, inside in warm.items()}
    return cold | known | bins("history", history_lengths, (20, 50, 100, 200))


MODEL = "model"
UNKNOWN = "unknown_items"
"""Key of a recommender's report: the number of catalogue items that the model does not know."""
BINS = 15


@dataclass(frozen=True)
class UnitResults:
    """Results of the model and each baseline on the same units."""

    unit: str
    """Name of the independent unit: post, user, document."""
    key: str
    """Hash of the units and their truth, in order: equal keys mean the same test set."""
    systems: Mapping[str, np.ndarray]
    """(n, k) columns of the model (`MODEL`) and each baseline."""
    metrics: Mapping[str, Metric]
    """Metrics as functions of the column sums."""
    primary: str
    higher_is_better: bool
    slice_metric: str
    """The metric that is meaningful within any slice."""
    slices: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(n,) mask of each slice."""
    inflated: tuple[str, ...] = ()
    """Metrics that resampling inflates."""
    hits: Mapping[str, np.ndarray] | None = None
    """(n,) correctness of each system; None if answers are not simply right or wrong."""
    needed: int | None = None
    """The primary metric and the slice metric use only the first `needed` columns; None means all of them."""

    def __len__(self) -> int:
        return len(self.systems[MODEL])

    @property
    def width(self) -> int:
        """Return the number of columns of one system."""
        return self.systems[MODEL].shape[1]

    def method(self, metric: str) -> Method:
        """Return the interval method of a metric: `basic` if resampling inflates it, else `bca`."""
        return "basic" if metric in self.inflated else "bca"

    def value(self, metric: str, system: str = MODEL) -> float:
        """Return a system's value of a metric."""
        return float(self.metrics[metric](self.systems[system].sum(0)))

    def part(self, name: str) -> UnitResults:
        """Return the results of the units of a slice."""
        inside = self.slices[name]
        hits = {n: h[inside] for n, h in self.hits.items()} if self.hits else None
        return replace(self, systems={n: s[inside] for n, s in self.systems.items()}, slices={}, hits=hits)

    def lean(self) -> UnitResults:
        """Return the results for the primary and the slice metric alone, which are quicker to bootstrap."""
        systems = {name: columns[:, : self.needed] for name, columns in self.systems.items()}
        metrics = {name: self.metrics[name] for name in (self.primary, self.slice_metric)}
        return replace(self, systems=systems, metrics=metrics)

    def against(self, other: UnitResults, name: str) -> UnitResults:
        """Return the results with another model's on the same units added as the system `name`.

        Raises `ValueError` if the units differ.
        """
        if self.key != other.key:
            raise ValueError(f"{name}: was measured on other {self.unit}s; measure it on the same ones")
        hits = {**self.hits, name: other.hits[MODEL]} if self.hits and other.hits else None
        return replace(self, systems={**self.systems, name: other.systems[MODEL]}, hits=hits)

    @cached_property
    def drawn(self) -> Bootstrap:
        """Return the paired bootstrap of all systems' columns."""
        return Bootstrap(np.concatenate(list(self.systems.values()), axis=1), DRAWS)

    def place(self, system: str) -> slice:
        """Return the slice of a system's columns among all columns."""
        start = list(self.systems).index(system) * self.width
        return slice(start, start + self.width)

    def system_metric(self, metric: str, system: str = MODEL) -> Metric:
        """Return a system's metric as a function of the sums of all columns."""
        place, function = self.place(system), self.metrics[metric]
        return lambda sums: function(sums[..., place])

    def gain(self, metric: str, system: str) -> Metric:
        """Return the metric by which the model is better than a system; positive means better."""
        difference = beside(self.metrics[metric], self.place(MODEL), self.place(system))
        return difference if self.better_up(metric) else lambda sums: -difference(sums)

    def better_up(self, metric: str) -> bool:
        """Return whether higher values of a metric are better."""
        return not metric.startswith(("calibration_error", "loss", "perplexity", "bits_per_byte"))

    def summary(self) -> dict[str, Any]:
        """Return the report's `unit`, `units`, `intervals`, `differences` to the baselines, and `slices`."""
        intervals = {
            system: {
                m: bounded(self.drawn.interval(self.system_metric(m, system), self.method(m))) for m in self.metrics
            }
            for system in self.systems
        }
        differences = {name: self.difference(name) for name in self.systems if name != MODEL}
        slices = [self.slice(name) for name, inside in self.slices.items() if inside.any()]
        facts = {"unit": self.unit, "units": len(self), "intervals": intervals, "differences": differences}
        return {**facts, "slice_metric": self.slice_metric, "slices": slices}

    def difference(self, system: str) -> dict[str, dict[str, Any]]:
        """Return the model's value minus the system's for each metric.

        Each entry has `value`, `interval` and the `probability` that the model is better. Accuracy also has the exact
        `p` of McNemar's test.
        """
        differences: dict[str, dict[str, Any]] = {}
        for name, metric in self.metrics.items():
            gain = beside(metric, self.place(MODEL), self.place(system))
            differences[name] = {
                "value": self.drawn.value(gain),
                "interval": list(self.drawn.interval(gain, self.method(name))),
                "probability": self.drawn.probability(self.gain(name, system)),
            }
        if self.hits and "accuracy" in differences:
            differences["accuracy"]["p"] = mcnemar(self.hits[MODEL], self.hits[system])
        return differences

    def slice(self, name: str) -> dict[str, Any]:
        """Return the report's entry of a slice."""
        part, metric = self.part(name), self.slice_metric
        low, high = part.drawn.interval(part.system_metric(metric))
        interval = [low, high] if high > low else None  # all its units are equal: resampling shows no spread
        values = {system: part.value(metric, system) for system in self.systems if system != MODEL}
        return {
            "slice": name, "units": len(part), "value": part.value(metric), "interval": interval, "baselines": values
        }  # fmt: skip


def bounded(interval: tuple[float, float]) -> list[float]:
    """Return an interval with its bounds raised to 0, since no metric here is negative."""
    return [max(0.0, bound) for bound in interval]


def key_of(*columns: Any) -> str:
    """Return a hash of the units' columns (16 hex digits)."""
    mark = blake2b(digest_size=8)
    for column in columns:
        for value in column:
            mark.update(f"{value}\0".encode("utf-8", "surrogatepass"))
    return mark.hexdigest()


Answers = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""The (n,) predicted classes and (n,) confidences of each system."""


def labelled(predictions: pd.DataFrame) -> tuple[list[str], Answers]:
    """Return (labels, answers) of a table of predictions.

    Its columns are `predicted`, `confidence`, a `probability_LABEL` for each label, and `predicted by NAME` and
    `confidence of NAME` for each baseline.
    """
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
    """Return per-unit results of classifiers, with the metrics of `gpt2.evaluation.metrics.classification`."""
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
    """Return per-unit results of rankings, with the metrics of `gpt2.evaluation.metrics.ranking`.

    `ranks` maps each system to the (n,) ranks, from 1, of the one relevant item.
    """

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
    """Return per-unit results of language models, with the metrics of `gpt2.evaluation.metrics.language_model`.

    `nll` maps each system to the (n,) negative log-likelihoods (nats) of the documents. `tokens`, `size` (UTF-8 bytes)
    and `part` (a name) are (n,), one value per document.
    """
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
"""Share of truncated texts above which a run's log warns."""
COSTLY = 1.5
"""Tokens per character of truncated texts above which the report says how much was read. English text has 0.2 to 0.5
with a tokenizer that learned it; Chinese has about 1, and 2 to 3 with a tokenizer that learned another language."""
REMEDY = (
    "The tokenizer was learned on other text. For more of each text, start from a model pretrained on text of this "
    "language (corpus.sources)."
)


def longer(tokenizer: Tokenizer, texts: Sequence[str], room: int) -> list[bool]:
    """Return for each text whether it has more than `room` tokens.

    A token is at least one byte, so short texts need no encoding.
    """
    found = ids_of_longer(tokenizer, texts, room)
    return [i in found for i in range(len(texts))]


def ids_of_longer(tokenizer: Tokenizer, texts: Sequence[str], room: int) -> dict[int, list[int]]:
    """Return the ids of each text that has more than `room` tokens, by its index."""
    candidates = [i for i, text in enumerate(texts) if len(text.encode("utf-8", "surrogatepass")) > room]
    encoded = zip(candidates, tokenizer.encode_batch([texts[i] for i in candidates]), strict=True)
    return {i: ids for i, ids in encoded if len(ids) > room}


def counted(tokenizer: Tokenizer, texts: Sequence[str], context: int) -> dict[str, Any]:
    """Return the number of `texts`, of those that are `cut` because they exceed the context, and the context `tokens`.

    A text must fit into the context together with its end-of-text token. If the cut texts have over `COSTLY` tokens per
    character, there are also this number as `per_character`, and the share of their characters that was `read`.
    """
    cut = ids_of_longer(tokenizer, texts, context - 1)
    counts: dict[str, Any] = {"texts": len(texts), "cut": len(cut), "tokens": context}
    characters = sum(len(texts[i]) for i in cut)
    if (ids := sum(map(len, cut.values()))) > COSTLY * characters:
        read = sum(len(tokenizer.decode(row[: context - 1])) for row in cut.values())
        counts |= {"per_character": round(ids / characters, 2), "read": round(min(1.0, read / characters), 4)}
    return counts


def sentence(cut: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the report's sentences on truncation; `cut` maps names, such as "held-out texts", to `counted` results."""
    clauses = []
    for name, counts in cut.items():
        texts, some, context = counts["texts"], counts["cut"], f"{counts['tokens']:,} tokens"
        fit = f"do{'es' * (some == 1)} not fit into {context} and {'was' if some == 1 else 'were'} cut there"
        share = f" ({some / texts:.1%})" if 1000 * some >= texts > 0 else ""
        cut_off = f"{some:,} of {texts:,} {name}{share} {fit}"
        if "read" in counts:
            whom = "it" if some == 1 else "them"
            per = f"{counts['per_character']:.1f} tokens"
            cut_off += f", since a character takes {per}: {counts['read']:.0%} of {whom} was read"
        clauses.append(cut_off if some else f"all {texts:,} {name} fit into {context}")
    whole = "; ".join(clauses)
    remedy = f" {REMEDY}" if any("read" in counts for counts in cut.values()) else ""
    return f"{whole[0].upper()}{whole[1:]}.{remedy}"


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Return the truncation warnings of a report for the run's log; empty if few texts are cut."""
    cut = report.get("cut", {})
    if not any(counts["cut"] > MANY * counts["texts"] for counts in cut.values()):
        return []
    return [
        f"{report['task']}: {sentence(cut)} A longer context (train.context, model.n_positions) reads more of them."
    ]
