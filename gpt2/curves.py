"""Curves of the sentiment index, as SVG: share with its interval, what is usual, alerts, volume."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from gpt2.pages import html

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, BARS = 520, 190, 38, 10, 20, 26
FLOOR = HEIGHT - BOTTOM - BARS
"""The y of a share of 0."""


def curve(rows: pd.DataFrame, window: str, least: int, top: float, alone: bool = False) -> str:
    """One topic's windows (of `gpt2.index.aggregate`, in order) as an SVG element; `top` is the scale's largest share.

    The line goes through windows with at least `least` decided posts; smaller ones are dots. Undecided posts are the
    pale upper part of a bar. Each window tells its figures where the mouse rests. `alone`: with its style inside.
    """
    first, last = rows["window"].iloc[0], rows["window"].iloc[-1]
    span = max((last - first).total_seconds(), 1)
    step = (WIDTH - LEFT - 8) / max(span / (3600 if window == "hour" else 86400), 1)

    def x(when: pd.Timestamp) -> float:
        return LEFT + (WIDTH - LEFT - 8) * (when - first).total_seconds() / span

    def y(share: float) -> float:
        return TOP + (FLOOR - TOP) * (1 - min(share / top, 1))

    large, few = rows[rows["decided"] >= least], rows[(rows["decided"] < least) & (rows["decided"] > 0)]
    usual, surges = rows[rows["expected"].notna()], rows[rows["surge"].astype(bool)]
    upper = [(x(r.window), y(r.high)) for r in large.itertuples()]
    lower = [(x(r.window), y(r.low)) for r in large.itertuples()]
    dots = [("few", at(x(r.window)), at(y(r.share)), 1.6) for r in few.itertuples()]
    dots += [("surge", at(x(r.window)), at(y(r.share)), 4) for r in surges.itertuples()]
    thin, wide, most = max(min(step * 0.7, 12), 0.6), max(step, 3), rows["posts"].max()
    between = [first + (last - first) * number / 3 for number in range(4)]
    return html.fragment(
        "curve.svg",
        alone=alone,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        shares=[(at(y(share)), f"{share:.0%}") for share in (0, top / 2, top)],
        dates=[
            (at(x(when)), anchor, f"{when:%d %b}")
            for when, anchor in zip(between, ("start", "middle", "middle", "end"), strict=True)
        ],
        bars=[bar for r in rows.itertuples() for bar in volume(r, x(r.window), thin, most)],
        halos=[("halo", at(x(r.window) - wide / 2), TOP, at(wide), FLOOR - TOP) for r in surges.itertuples()],
        band=points(upper + lower[::-1]) if len(large) > 1 else "",
        usual=points((x(r.window), y(r.expected)) for r in usual.itertuples()),
        line=points((x(r.window), y(r.share)) for r in large.itertuples()),
        dots=dots,
        windows=[(at(x(r.window) - max(step, 1) / 2), at(max(step, 1)), figures(r, window)) for r in rows.itertuples()],
    )


def volume(row: Any, centre: float, width: float, most: int) -> list[tuple[str, str, str, str, str]]:
    """A window's bar, as (class, x, y, width, height) of its decided and of its undecided posts."""
    below: float = HEIGHT - BOTTOM
    found = []
    for kind, count in (("decided", row.decided), ("open", row.undecided)):
        tall = (BARS - 4) * count / most
        below -= tall
        if count:
            found.append((kind, at(centre - width / 2), at(below), at(width), at(tall)))
    return found


def at(value: float) -> str:
    """A coordinate."""
    return f"{value:.1f}"


def points(places: Iterable[tuple[float, float]]) -> str:
    """The (x, y) of a line, as SVG has them."""
    return " ".join(f"{at(x)},{at(y)}" for x, y in places)


def figures(row, window: str) -> str:
    """A window in words."""
    when = row.window.strftime("%a %d %b %Y %H:00" if window == "hour" else "%a %d %b %Y")
    told = f"{when}: nothing decided"
    if row.decided:
        share = f"{row.share:.0%} negative ({row.low:.0%} to {row.high:.0%})"
        told = f"{when}: {share}, {row.negative:,} of {row.decided:,} posts"
    if row.undecided:
        told += f"; {row.undecided:,} undecided"
    if row.expected == row.expected:
        told += f"; usual {row.expected:.0%}"
    if not row.complete:
        told += "; not over yet"
    return told + ("; ALERT" if row.surge else "")


def image(rows: pd.DataFrame, window: str, least: int, top: float) -> str:
    """The same curve as a `data:` address."""
    return html.inline(curve(rows, window, least, top, alone=True).encode(), "image/svg+xml")
