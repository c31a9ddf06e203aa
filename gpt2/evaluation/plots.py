"""Figures of reports: PNG files, each returned as {file, title}."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from gpt2.evaluation import confidence as evaluation_confidence
from gpt2.evaluation.significance import wilson

INK, ACCENT, SECOND, PALE = "#222222", "#1f6feb", "#d1495b", "#b9c4d0"
COLOURS = (ACCENT, SECOND, "#2a9d5c", "#e0912f", "#7a4fbf", "#6b7785")
"""Line colours, in order of use."""
DPI = 80


def blank(title: str, width: float = 7.5, height: float = 3.2, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Return a figure with a title and its axes, one or (columns,) of them, without top and right spines."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, columns, **options)
    for each in np.atleast_1d(axes):
        each.spines[["top", "right"]].set_visible(False)
    entitle(figure, title)
    return figure, axes


def entitle(figure: Figure, title: str) -> None:
    """Put the wrapped title above the figure, left-aligned."""
    wrapped = textwrap.fill(title, int(13 * figure.get_figwidth()))
    figure.suptitle(wrapped, x=0.01, ha="left", fontsize=11, color=INK)


SavedFigure = dict[str, str]
DEEPEST, TICKS = 50, (1, 2, 5, 10, 20)
"""The last k of a ranking curve, and the k that its axis labels."""


def finish(figure: Any, out: Path, file: str, title: str) -> SavedFigure:
    """Save a figure to `out` and close it; return its file and title."""
    """Save a figure to `out` and close it; return its file and title."""
    figure.tight_layout()
    figure.savefig(out / file, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return {"file": file, "title": title}


def confusion(matrix: np.ndarray, labels: Sequence[str], out: Path) -> SavedFigure:
    """Plot a (classes, classes) confusion matrix: row shares as colours, counts as text."""
    figure, axes = plt.subplots(figsize=(1.2 + 0.9 * len(labels), 0.9 + 0.8 * len(labels)))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i in range(len(labels)):
        for j in range(len(labels)):
            colour = "white" if shares[i, j] > 0.5 else INK
            axes.text(j, i, f"{matrix[i, j]:,}\n{shares[i, j]:.0%}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return finish(figure, out, "confusion.png", "Confusion matrix (shares of the true class)")


def reliability(
    rows: Sequence[tuple[float, float, int]], out: Path, before: Sequence[tuple[float, float, int]] = ()
) -> SavedFigure:
    """Plot accuracy against confidence per bin; a calibrated model lies on the diagonal. `before`: uncalibrated."""
    figure, axes = plt.subplots(figsize=(4, 3.6))
    axes.plot([0, 1], [0, 1], color=PALE, linewidth=1)
    if before:
        confidence, accuracy, _ = zip(*before, strict=True)
        axes.plot(confidence, accuracy, "o--", color=PALE, markersize=5, label="before the temperature")
    confidence, accuracy, counts = zip(*rows, strict=True)
    sizes = 20 + 180 * np.array(counts) / max(counts)
    axes.scatter(confidence, accuracy, s=sizes, color=ACCENT, alpha=0.8, label="as predicted", zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    if before:
        axes.legend(frameon=False, loc="upper left", fontsize=8)
    return finish(figure, out, "reliability.png", "Reliability (the size is the number of texts)")


def abstaining(
    systems: Mapping[str, tuple[np.ndarray, np.ndarray]], chosen: Sequence[Mapping[str, Any]], out: Path
) -> SavedFigure:
    """Plot accuracy against coverage for `model`, with its 95 % interval, and for the baselines.

    `systems` maps names to the (N,) confidence and (N,) correctness. `chosen` are the points with their threshold
    (`gpt2.evaluation.confidence.rows`).
    """
    figure, axes = plt.subplots(figsize=(5.6, 3.6))
    lowest = 1.0
    for name, (confidence, right) in systems.items():
        kept, hits = evaluation_confidence.curve(confidence, right)
        share, accuracy = kept / len(right), hits / kept
        lowest = min(lowest, accuracy.min())
        if name == "model":
            axes.fill_between(share, *wilson(hits, kept), color=ACCENT, alpha=0.15, linewidth=0)
        style = {"color": ACCENT, "linewidth": 2.2, "zorder": 3} if name == "model" else {"color": PALE}
        axes.plot(share, accuracy, label="this model" if name == "model" else name, **style)
    for row in chosen:
        axes.plot(row["coverage"], row["accuracy"], "o", color=ACCENT, markersize=5, zorder=4)
        if row["abstain_below"]:
            label, above = f"{row['abstain_below']:g}", (0, 7)
            axes.annotate(label, (row["coverage"], row["accuracy"]), above, textcoords="offset points", fontsize=8)
    axes.set(xlim=(0, 1.02), ylim=(max(0, lowest - 0.05), 1.01))
    axes.set(xlabel="share of the texts that keep a label", ylabel="accuracy of those")
    axes.legend(frameon=False, loc="lower left", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    title = "Accuracy where the least sure texts get no label; the numbers are abstain_below"
    return finish(figure, out, "abstaining.png", title)


def beside_baselines(
    metric: str,
    value: float,
    baselines: Mapping[str, float],
    out: Path,
    intervals: Mapping[str, Sequence[float]] = {},
    file: str = "baselines.png",
) -> SavedFigure:
    """Plot the primary metric of the model and each baseline as bars, with `intervals` by name (`model` is ours)."""
    names = ["this model", *baselines]
    values = [value, *baselines.values()]
    figure, axes = plt.subplots(figsize=(5.6, 0.8 + 0.45 * len(names)))
    axes.barh(names, values, color=[ACCENT] + [PALE] * len(baselines))
    ends = [intervals.get(name, (v, v)) for name, v in zip(["model", *baselines], values, strict=True)]
    for place, (v, (low, high)) in enumerate(zip(values, ends, strict=True)):
        if high > low:
            reach = [[max(0.0, v - low)], [max(0.0, high - v)]]
            axes.errorbar(v, place, xerr=reach, color=INK, capsize=3, linewidth=1.2)
    far = max(max(v, high) for v, (_, high) in zip(values, ends, strict=True))
    for place, (v, (_, high)) in enumerate(zip(values, ends, strict=True)):
        axes.text(max(v, high) + 0.015 * far, place, f"{v:.3f}", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * far)
    axes.set_xlabel(metric.replace("_", " ") + (", 95 % interval" if intervals else ""))
    axes.spines[["top", "right"]].set_visible(False)
    return finish(
        figure, out, file, f"{metric.replace('_', ' ')} beside {'champion and ' * ('champion' in baselines)}baselines"
    )


def recall(ranks: Mapping[str, np.ndarray], whose: str, out: Path) -> SavedFigure:
    """Plot recall at k of the model, with its 95 % Wilson interval, and of each baseline.

    `ranks` maps names to (n,) ranks from 1. k goes up to `DEEPEST` or the last rank. `whose` names the units in the
    title, such as "users whose next choice".
    """
    last = min(DEEPEST, max(2, *(int(rank.max()) for rank in ranks.values())))
    steps, count = np.arange(1, last + 1), len(ranks["model"])
    shares = {name: (rank[:, None] <= steps).mean(0) for name, rank in ranks.items()}
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    low, high = wilson(shares["model"] * count, np.full(len(steps), count))
    axes.fill_between(steps, low, high, color=ACCENT, alpha=0.15, linewidth=0)
    axes.plot(steps, shares["model"], color=ACCENT, linewidth=2.4, label="this model", zorder=3)
    others = sorted((name for name in ranks if name != "model"), key=lambda name: -shares[name].sum())
    for name, colour in zip(others, cycle(COLOURS[1:])):
        axes.plot(steps, shares[name], color=colour, linewidth=1.3, label=name)
    axes.set(xscale="log", xlim=(1, last), ylim=(0, None), xlabel="k, the first of a ranking", ylabel="recall at k")
    ticks = [k for k in TICKS if k < last] + [last]
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.xaxis.set_minor_formatter("")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    title = f"Recall at k: the share of {count:,} {whose} is among the first k, with the model's 95 % interval"
    return finish(figure, out, "recall.png", title)


def slices(metric: str, whole: float, rows: Sequence[Mapping[str, Any]], out: Path) -> SavedFigure:
    """Plot the metric of each slice with its interval; a line marks the metric of all examples."""
    figure, axes = plt.subplots(figsize=(6.4, 0.9 + 0.28 * len(rows)))
    axes.axvline(whole, color=PALE, linewidth=1.5)
    for place, row in enumerate(rows):
        axes.plot(
            row["interval"] or [row["value"]] * 2, [place, place], color=PALE, linewidth=3, solid_capstyle="round"
        )
        axes.plot(row["value"], place, "o", color=ACCENT, markersize=5)
    axes.set_yticks(range(len(rows)), [f"{row['slice']} ({row['units']:,})" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric.replace('_', ' ')}, 95 % interval; the line is all of them")
    axes.spines[["top", "right"]].set_visible(False)
    return finish(figure, out, "slices.png", f"{metric.replace('_', ' ')} by part of the examples")


def curve(records: Sequence[Mapping[str, Any]], out: Path) -> SavedFigure:
    """Plot training and validation loss by step."""
    figure, axes = plt.subplots(figsize=(5.6, 3.2))
    for name, label, colour in (("loss", "training", PALE), ("validation_loss", "validation", ACCENT)):
        points = [(r["step"], r[name]) for r in records if name in r]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, label=label, marker="o" if len(points) < 20 else None)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return finish(figure, out, "curve.png", "Loss while training")


def search(rows: Sequence[Mapping[str, Any]], best: int) -> Figure:
    """Draw the validation loss by step of each trial of a search (`flows.jobs.search_plan.rows`).

    Beside it the last loss is plotted against each sampled numeric setting. Filled points are trials that finished.
    """
    drawn = {path: value for row in rows for path, value in row["settings"].items()}
    numbers = [p for p, v in drawn.items() if isinstance(v, float) and not isinstance(v, bool)][:3]
    loss = next(row["validation_loss"] for row in rows if row["candidate"] == best)
    title = f"Best of {len(rows)} candidates: number {best} (blue) with {loss:.4f}; number 0 is the preset itself (red)"
    figure, axes = blank(title, 3.4 * (1 + len(numbers)), 3.2, 1 + len(numbers))
    first, *others = np.atleast_1d(axes)
    for row in sorted(rows, key=lambda row: row["candidate"] == best):
        mine, own = row["candidate"] == best, row["candidate"] == 0
        colour = ACCENT if mine else SECOND if own else PALE
        if row["curve"]:
            first.plot(*zip(*row["curve"], strict=True), color=colour, linewidth=2 if mine or own else 1, marker=".")
        for each, path in zip(others, numbers, strict=True):
            if path in row["settings"] and row["validation_loss"] is not None:
                inside = colour if row["state"] == "ended" else "none"
                each.scatter(row["settings"][path], row["validation_loss"], edgecolor=colour, facecolor=inside)
    first.set(xlabel="step", ylabel="validation loss")
    for each, path in zip(others, numbers, strict=True):
        values = [row["settings"][path] for row in rows if path in row["settings"]]
        each.set_xlabel(path.removeprefix("train.").removeprefix("optimizer."))
        if min(values) > 0 and max(values) > 20 * min(values):
            each.set_xscale("log")
            each.xaxis.set_minor_formatter("")
    return figure


matplotlib.use("Agg")
