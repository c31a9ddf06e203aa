"""Curves of the sentiment index, as SVG: share with its interval, what is usual, alerts, volume."""

from __future__ import annotations

import base64
import html

import pandas as pd

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, BARS = 520, 190, 38, 10, 20, 26
STYLE = """
.band{fill:var(--accent,#1f6feb);opacity:.16}.line{fill:none;stroke:var(--accent,#1f6feb);stroke-width:1.8}
.usual{fill:none;stroke:var(--muted,#768390);stroke-width:1.2;stroke-dasharray:4 3}
.bar{fill:var(--muted,#768390);opacity:.35}.open{fill:var(--muted,#768390);opacity:.15}
.grid{stroke:var(--grid,#d8dee4);stroke-width:1}.few{fill:var(--muted,#768390);opacity:.45}
.surge{fill:var(--alarm,#d1242f)}.halo{fill:var(--alarm,#d1242f);opacity:.12}.hit{fill:transparent}
.svg text{font:11px system-ui,sans-serif;fill:var(--muted,#768390)}
"""


def curve(rows: pd.DataFrame, window: str, least: int, top: float) -> str:
    """One topic's windows (of `gpt2.index.aggregate`, in order) as an SVG element; `top` is the scale's largest share.

    The line goes through windows with at least `least` decided posts; smaller ones are dots. Undecided posts are the
    pale upper part of a bar. Each window tells its figures where the mouse rests.
    """
    first, last = rows["window"].iloc[0], rows["window"].iloc[-1]
    span = max((last - first).total_seconds(), 1)
    step = (WIDTH - LEFT - 8) / max(span / (3600 if window == "hour" else 86400), 1)
    floor = HEIGHT - BOTTOM - BARS
    most = rows["posts"].max()

    def x(when: pd.Timestamp) -> float:
        return LEFT + (WIDTH - LEFT - 8) * (when - first).total_seconds() / span

    def y(share: float) -> float:
        return TOP + (floor - TOP) * (1 - min(share / top, 1))

    parts = []
    for share in (0, top / 2, top):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for number in range(4):
        when = first + (last - first) * number / 3
        anchor = ("start", "middle", "middle", "end")[number]
        parts.append(f'<text x="{x(when):.1f}" y="{HEIGHT - 5}" text-anchor="{anchor}">{when:%d %b}</text>')
    width = max(min(step * 0.7, 12), 0.6)
    for row in rows.itertuples():
        left, below = x(row.window) - width / 2, HEIGHT - BOTTOM
        for kind, count in (("bar", row.decided), ("open", row.undecided)):
            tall = (BARS - 4) * count / most
            below -= tall
            if count:
                parts.append(
                    f'<rect class="{kind}" x="{left:.1f}" y="{below:.1f}" width="{width:.1f}" height="{tall:.1f}"/>'
                )
    for row in rows[rows["surge"].astype(bool)].itertuples():
        parts.append(
            f'<rect class="halo" x="{x(row.window) - max(step, 3) / 2:.1f}" y="{TOP}" width="{max(step, 3):.1f}" '
            f'height="{floor - TOP}"/>'
        )
    large = rows[rows["decided"] >= least]
    if len(large) > 1:
        upper = [f"{x(r.window):.1f},{y(r.high):.1f}" for r in large.itertuples()]
        lower = [f"{x(r.window):.1f},{y(r.low):.1f}" for r in large.itertuples()]
        parts.append(f'<polygon class="band" points="{" ".join(upper + lower[::-1])}"/>')
    usual = rows[rows["expected"].notna()]
    parts.append(line("usual", [(x(r.window), y(r.expected)) for r in usual.itertuples()]))
    parts.append(line("line", [(x(r.window), y(r.share)) for r in large.itertuples()]))
    for row in rows[(rows["decided"] < least) & (rows["decided"] > 0)].itertuples():
        parts.append(f'<circle class="few" cx="{x(row.window):.1f}" cy="{y(row.share):.1f}" r="1.6"/>')
    for row in rows[rows["surge"].astype(bool)].itertuples():
        parts.append(f'<circle class="surge" cx="{x(row.window):.1f}" cy="{y(row.share):.1f}" r="4"/>')
    for row in rows.itertuples():
        parts.append(
            f'<rect class="hit" x="{x(row.window) - max(step, 1) / 2:.1f}" y="0" width="{max(step, 1):.1f}" '
            f'height="{HEIGHT}"><title>{html.escape(figures(row, window))}</title></rect>'
        )
    return f'<svg class="svg" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'


def line(kind: str, points: list[tuple[float, float]]) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


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


def image(svg: str) -> str:
    """An SVG element as a `data:` address, with its style inside."""
    styled = svg.replace(">", f"><style>{STYLE}</style>", 1)
    return f"data:image/svg+xml;base64,{base64.b64encode(styled.encode()).decode()}"
