"""Chooses the texts to label next: those that would teach a classifier most, unlike each other.

A text teaches much where the model is unsure of it (the margin of its two likeliest labels, Scheffer et al. 2001), and
more where it holds n-grams that no training text has. Of many alike, few are chosen: each choice lowers the value of
those that resemble it (maximal marginal relevance, Carbonell and Goldstein 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpt2.data.tables import cell, missing, name_in, read_table
from gpt2.store.artifact import write_atomically
from gpt2.tasks.sentiment.config import LABEL_FIELDS, LabelledFile, fold
from gpt2.tasks.sentiment.dataset import masked
from gpt2.tasks.sentiment.ngrams import counts, weighted

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

CANDIDATES = 10
"""The most valuable texts that are compared with each other, as a multiple of the number to choose."""


def margin(probabilities: np.ndarray) -> np.ndarray:
    """Return (N,) how unsure each row of (N, classes) probabilities is: 0 sure, 1 undecided between two labels."""
    first, second = np.sort(probabilities, 1)[:, :-3:-1].T
    return 1 - (first - second)


def unlike(features: csr_matrix, known: csr_matrix) -> np.ndarray:
    """Return (N,) the share of each row of l2-normalised features that no row of `known` has: 0 to 1."""
    seen = np.asarray((known != 0).sum(0)).ravel() > 0
    return 1 - np.asarray(features.multiply(features) @ seen.astype(np.float32)).ravel()


def chosen(value: np.ndarray, features: csr_matrix, count: int) -> np.ndarray:
    """Return the indices of `count` rows of high (N,) value that are unlike each other, the best first."""
    candidates = np.argsort(-value, kind="stable")[: CANDIDATES * count]
    value, features, order = value[candidates].astype(float), features[candidates], []
    columns = features.T.tocsc()
    for _ in range(min(count, len(candidates))):
        best = int(np.argmax(value))
        order.append(best)
        value *= 1 - np.asarray((features @ columns[:, [best]]).todense()).ravel().clip(0, 1)
        value[best] = -1.0
    return candidates[order]


COLUMNS = ("text", "label", "topic", "suggested", "confidence", "why")
"""Columns of a file of texts to label. People fill in `label`, and an empty one is left out."""


def choose(table: pd.DataFrame, known: Sequence[str], count: int) -> pd.DataFrame:
    """Return the `COLUMNS` of the texts to label next, by topic, the best first; none of the `known` texts.

    `table` has `text`, `topic`, `suggested` (the model's label), `confidence`, `unsure` (0 to 1) and perhaps `label`.
    A text whose label the model contradicts is asked about again.
    """
    read = table["text"].map(masked)
    table = table[~read.isin({masked(text) for text in known}) & ~read.duplicated()].reset_index(drop=True)
    if table.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    raw, raw_known = (counts([masked(text) for text in texts]) for texts in (table["text"], known or [""]))
    idf = np.log((1 + raw_known.shape[0]) / (1 + np.asarray((raw_known != 0).sum(0)).ravel())) + 1
    features, unsure = weighted(raw, idf.astype(np.float32)), table["unsure"].to_numpy(float)
    new = unlike(features, raw_known)
    given = table["label"].fillna("") if "label" in table else pd.Series("", index=table.index)
    doubtful = ((given != "") & (given.map(fold) != table["suggested"].map(fold))).to_numpy()
    value = np.where(given == "", unsure, np.where(doubtful, 1 - unsure, 0.0)) * (1 + new)
    best = chosen(value, features, min(count, int((value > 0).sum())))
    strange = new > np.quantile(new, 0.9)
    why = np.where(strange & (unsure < 0.5), "unlike the training texts", "the model is unsure")
    why = np.where(doubtful, "its label is in doubt: " + given.astype(str), why)
    told = table.assign(label="", why=why, confidence=table["confidence"].round(3)).iloc[best]
    return told.sort_values("topic", kind="stable", key=lambda topics: topics.fillna(""))[list(COLUMNS)]


def judged(table: pd.DataFrame, predictor: Any) -> pd.DataFrame:
    """Return the columns that `choose` needs: `text`, `topic`, what the model says, and a `label` that is known."""
    probabilities = predictor.probabilities(table["text"].tolist())
    labels = np.array(predictor.labels)
    facts = {
        "topic": table["topic"].map(cell) if "topic" in table else None,
        "label": table["label"].map(name_in) if "label" in table else None,
        "suggested": labels[probabilities.argmax(1)],
        "confidence": probabilities.max(1),
        "unsure": margin(probabilities),
    }
    return table[["text"]].assign(**facts)


def labelled(path: Path) -> pd.DataFrame:
    """Return the rows of a file of texts to label that have a label now; raises `ValueError` if there are none."""
    table = read_table(path)
    if fault := missing(table, {"text_field": "text", "label_field": "label"}):
        raise ValueError(f"{path} has {fault}; give the file that gpt2 label wrote, with its column label filled in")
    table = table.assign(text=table["text"].map(cell), label=table["label"].map(name_in))
    table = table[table["text"].notna() & table["label"].notna()]
    if table.empty:
        raise ValueError(f"{path}: no row has a label; fill in the column label")
    return table


def add(path: Path, source: Path, settings: LabelledFile, now: str) -> int:
    """Add the labelled texts of a file to a file that a classifier learns from; return their number.

    Texts that it has with the same label are left out. In a file with times they get the time `now`. Rows are appended,
    and what the file has stays as it is; a Parquet file is written anew.
    """
    have, label = read_table(source), settings.label_field
    label = label or next((name for name in LABEL_FIELDS if name in have), LABEL_FIELDS[0])
    rows = labelled(path)
    known = set(zip(have[settings.text_field].map(cell), have[label].map(name_in), strict=True))
    rows = rows[[pair not in known for pair in zip(rows["text"], rows["label"], strict=True)]]
    values = {settings.text_field: rows["text"], label: rows["label"]}
    if settings.topic_field in have and "topic" in rows:
        values[str(settings.topic_field)] = rows["topic"]
    if settings.time_field in have:
        values[str(settings.time_field)] = pd.Series(now, index=rows.index)
    more = pd.DataFrame(values, columns=list(have.columns))
    if source.suffix == ".parquet":
        write_atomically(source, pd.concat([have, more]).to_parquet(index=False))
    elif source.suffix in (".csv", ".jsonl"):
        end = "" if source.read_bytes()[-1:] in (b"\n", b"") else "\n"
        csv = source.suffix == ".csv"
        text = (
            more.to_csv(index=False, header=False) if csv else more[list(values)].to_json(orient="records", lines=True)
        )
        with source.open("a", encoding="utf-8", newline="") as file:
            file.write(end + (text if len(more) else ""))
    else:
        raise ValueError(f"{source}: can't be added to; give the model a .csv, .jsonl or .parquet file")
    return len(more)
