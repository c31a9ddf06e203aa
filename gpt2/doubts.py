"""What a report says of its examples: where they come from, how they count, and which labels to look at again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

HEADING = "Mistakes to look at: is the label right? Held-out examples with the highest loss"
SHOWN, CHARS = 20, 240


def table(held_out: Sequence[tuple[str, pd.DataFrame, np.ndarray]], labels: Sequence[str]) -> dict[str, Any]:
    """The report's table of the examples whose given label surprised the model most, {heading: {header, rows}}.

    `held_out` has (split, table, (N, classes) probabilities). Whoever trains a model on them would not see it: what it
    has learned by heart it believes. Loss: -log of the given label's probability, as in confident learning's simplest
    ranking (Northcutt et al. 2021, "self-confidence").
    """
    found = []
    for split, examples, probabilities in held_out:
        given = examples["label"].to_numpy()
        losses = -np.log(np.maximum(probabilities[np.arange(len(given)), given], 1e-12))
        numbers = examples["row"].to_numpy()
        best = probabilities.argmax(1)
        for i in np.flatnonzero(best != given):
            told = f"{labels[best[i]]} ({probabilities[i, best[i]]:.0%})"
            cells = [f"{losses[i]:.2f}", labels[given[i]], told, examples["text"].iloc[i][:CHARS]]
            found.append((-losses[i], [*cells, f"{split} {numbers[i]}"]))
    found.sort(key=lambda item: item[0])
    rows = [cells for _, cells in found[:SHOWN]]
    header = ["loss", "given label", "the model's", "text", "split and row of the file"]
    return {HEADING: {"header": header, "rows": rows}} if rows else {}


def remarks(examples: Path, train: pd.DataFrame, test: pd.DataFrame, labels: Sequence[str]) -> list[str]:
    """Sentences on how the examples were split and weighted, and on texts with several labels."""
    counts, told = json.loads((examples / "counts.json").read_text()), []
    if "time" in test:
        told.append(
            f"Split by time: tested on texts from {day(test['time'].min())} to {day(test['time'].max())}, trained on "
            f"older ones, {day(train['time'].min())} to {day(train['time'].max())}."
        )
    if removed := counts.get("near_duplicates_removed"):
        told.append(f"{removed:,} texts are in no split, since a later split has a near-duplicate of each.")
    if conflicting := counts["conflicting_texts"]:
        which = "newest" if "time" in test else "first"
        told.append(f"{conflicting:,} texts were there with more than one label: the {which} counts.")
    if "weight" in train:
        means = train["weight"].groupby(train["label"]).mean()
        each = ", ".join(f"{labels[i]} {mean:.2f}" for i, mean in means.items())
        told.append(f"Mean weight in the training loss: {each}. Everything here counts all examples alike.")
    return told


def day(time: pd.Timestamp) -> str:
    return f"{time:%Y-%m-%d}"
