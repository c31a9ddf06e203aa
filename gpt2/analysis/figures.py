"""Figures for notebooks: each shows one finding, which its title states. Functions return a `matplotlib` figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from gpt2.evaluation.plots import ACCENT, COLOURS, DPI, INK, PALE, blank, entitle


def draw_lines(axes: Axes, series: Mapping[str, Sequence[float]], xs: Sequence[float] | None = None) -> None:
    """Draw a named line for each series, against `xs` or 1, 2, 3, ..."""
    for (name, ys), colour in zip(series.items(), COLOURS, strict=False):
        axes.plot(range(1, len(ys) + 1) if xs is None else xs, ys, color=colour, label=name, linewidth=1.6)
    if any(series):
        axes.legend(frameon=False, fontsize=9)


def lines(
    title: str,
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    x: str | Sequence[str] = "step",
    log: Sequence[str] = (),
    xs: Sequence[float] | None = None,
    height: float = 3.2,
) -> Figure:
    """Return a figure with a panel for each y label, each with its named lines.

    Panels named in `log` have a logarithmic y axis. `x` names the x axis, or that of each panel.
    """
    names = [x] * len(panels) if isinstance(x, str) else x
    figure, axes = blank(title, 4.4 * max(len(panels), 1.5), height, len(panels))
    for each, name, (y, series) in zip(np.atleast_1d(axes), names, panels.items(), strict=True):
        draw_lines(each, series, xs)
        each.set(xlabel=name, ylabel=y)
        if xs is None or all(isinstance(value, int) for value in xs):
            each.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
        if y in log:
            each.set_yscale("log")
            low, high = each.get_ylim()
            if high < 100 * low:  # powers of ten alone would be too few to read from
                each.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                each.yaxis.set_major_formatter("{x:g}")
                each.yaxis.set_minor_formatter("")
    return figure


def smooth(values: Sequence[float], width: int = 5) -> np.ndarray:
    """Return the running mean over the last `width` values, or fewer at the beginning."""
    sums = np.cumsum(np.asarray(values, dtype=float))
    shifted = np.concatenate([np.zeros(min(width, len(sums))), sums[:-width]])
    return (sums - shifted) / np.minimum(np.arange(1, len(sums) + 1), width)


def attention(title: str, maps: np.ndarray, words: Sequence[str]) -> Figure:
    """Plot (L, H, T, T) attention weights: a row of panels per layer; rows are queries, columns are keys."""
    layers, heads = maps.shape[:2]
    figure = Figure(figsize=(1.95 * heads + 0.9, 1.95 * layers + 0.8), dpi=DPI, layout="constrained")
    grid = figure.subplots(layers, heads, sharex=True, sharey=True, squeeze=False)
    for layer in range(layers):
        for head in range(heads):
            axes = grid[layer, head]
            axes.imshow(maps[layer, head], cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8, color=INK)
            axes.set_xticks(range(len(words)), words, rotation=90, fontsize=6)
            axes.set_yticks(range(len(words)), words, fontsize=6)
    entitle(figure, title)
    return figure


def table(
    title: str,
    values: np.ndarray,
    cells: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    key: str,
) -> Figure:
    """Plot a (rows, columns) table of values from 0 as colours, each cell with its text; `key` labels the colours."""
    figure, axes = blank(title, 0.85 * len(columns) + 1.9, 0.34 * len(rows) + 1.3)
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=values.max(), aspect="auto")
    for i, line in enumerate(cells):
        for j, text in enumerate(line):
            colour = "white" if values[i, j] > 0.55 * values.max() else INK
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label=key, fraction=0.03, pad=0.02)
    return figure


def bars(
    title: str, values: Mapping[str, float], label: str, accent: Sequence[str] = (), form: str = "{:.2f}"
) -> Figure:
    """Plot a horizontal bar for each value; bars named in `accent` are coloured."""
    figure, axes = blank(title, 7, 0.9 + 0.32 * len(values))
    draw_bars(axes, values, label, accent, form)
    return figure


def draw_bars(
    axes: Axes, values: Mapping[str, float], label: str, accent: Sequence[str] = (), form: str = "{:.2f}"
) -> None:
    """Draw the bars of `bars` into existing axes."""
    drawn = axes.barh(list(values), list(values.values()), color=[ACCENT if v in accent else PALE for v in values])
    axes.bar_label(drawn, [form.format(v) for v in values.values()], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.margins(x=0.15)
    axes.set_xlabel(label)


def dots(title: str, values: Mapping[str, Sequence[float]], label: str) -> Figure:
    """Plot a row for each name, with a dot for each of its values and a line at their mean."""
    figure, axes = blank(title, 7, 0.9 + 0.32 * len(values))
    for row, numbers in enumerate(values.values()):
        axes.plot(numbers, [row] * len(numbers), "o", color=ACCENT, markersize=5, alpha=0.8)
        axes.plot(np.mean(numbers), row, "|", color=INK, markersize=16)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.grid(axis="x", color=PALE, linewidth=0.5)
    axes.set_xlabel(label)
    return figure


def scatter(
    title: str,
    xs: Sequence[float],
    ys: Sequence[float],
    names: Sequence[str],
    x: str,
    y: str,
    log: bool = False,
    errors: Sequence[float] | None = None,
) -> Figure:
    """Plot a named point for each pair, with `errors` above and below; with `log` the x axis is logarithmic."""
    figure, axes = blank(title, 7, 3.6)
    axes.errorbar(xs, ys, errors, fmt="o", color=ACCENT, ecolor=PALE, markersize=5)
    for place, name in zip(zip(xs, ys, strict=True), names, strict=True):
        axes.annotate(name, place, xytext=(4, 3), textcoords="offset points", fontsize=7.5, color=INK)
    axes.set(xlabel=x, ylabel=y, xscale="log" if log else "linear")
    axes.margins(x=0.12)
    return figure
