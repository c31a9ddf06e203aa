"""The monitor's page: alerts first, then each topic's curve over time, drift, and how to read it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gpt2.monitoring.alerts import HISTORY, LEAST, MEASURES, MIN_HISTORY, Drift
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.index import ALL, PROMISED, STEP, Alert
from gpt2.pages import html
from gpt2.pages.markdown import flat, table

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, BARS = 520, 190, 38, 10, 20, 26
FLOOR = HEIGHT - BOTTOM - BARS
"""The y of a share of 0."""


def curve(rows: pd.DataFrame, window: str, least: int, top: float, alone: bool = False) -> str:
    """Return one topic's windows (of `gpt2.monitoring.index.aggregate`, in order) as an SVG element.

    `top` is the largest share of the scale. The line connects windows with at least `least` decided posts; smaller ones
    are dots. Undecided posts are the pale upper part of a bar. Hovering over a window shows its figures. `alone`
    includes the style.
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
    """Return a window's bars, as (class, x, y, width, height) of its decided and of its undecided posts."""
    below: float = HEIGHT - BOTTOM
    bars = []
    for kind, count in (("decided", row.decided), ("open", row.undecided)):
        tall = (BARS - 4) * count / most
        below -= tall
        if count:
            bars.append((kind, at(centre - width / 2), at(below), at(width), at(tall)))
    return bars


def at(value: float) -> str:
    """Return a coordinate as text."""
    return f"{value:.1f}"


def points(places: Iterable[tuple[float, float]]) -> str:
    """Return the (x, y) points of a line in SVG's form."""
    return " ".join(f"{at(x)},{at(y)}" for x, y in places)


def figures(row, window: str) -> str:
    """Return a window's figures as text."""
    when = row.window.strftime("%a %d %b %Y %H:00" if window == "hour" else "%a %d %b %Y")
    text = f"{when}: nothing decided"
    if row.decided:
        share = f"{row.share:.0%} negative ({row.low:.0%} to {row.high:.0%})"
        text = f"{when}: {share}, {row.negative:,} of {row.decided:,} posts"
    if row.undecided:
        text += f"; {row.undecided:,} undecided"
    if row.expected == row.expected:
        text += f"; usual {row.expected:.0%}"
    if not row.complete:
        text += "; not over yet"
    return text + ("; ALERT" if row.surge else "")


def image(rows: pd.DataFrame, window: str, least: int, top: float) -> str:
    """Return the same curve as a `data:` URL."""
    return html.inline(curve(rows, window, least, top, alone=True).encode(), "image/svg+xml")


SHOWN = {"hour": 14 * 24, "day": 120}
"""Number of windows on the page."""
MANY, TWICE, LITTLE = 0.5, 2.0, 0.01
"""The page warns if the share of undecided posts exceeds `MANY`, or `TWICE` times that of held-out texts. The latter
counts as at least `LITTLE`."""


@dataclass(frozen=True)
class Page:
    """The contents of the page."""

    config: MonitorConfig
    model: str
    """The model's exact address."""
    metric: str
    """The model's quality, as `macro f1 0.71`."""
    index: pd.DataFrame
    alerts: Sequence[Alert]
    examples: Sequence[Sequence[str]]
    """Texts of posts for each alert."""
    drift: Sequence[Drift] | None
    """None if there is no reference to compare with."""
    posts: int
    troubles: Sequence[str] = ()
    """Faults of rows and files that could not be read."""
    note: str = ""
    """A note at the top of the page."""
    usual_undecided: float | None = None
    """Share of held-out texts of the training data that `abstain_below` leaves undecided; None if there are none."""
    cut: int = 0
    """Number of posts longer than the model's context."""
    topics: list[str] = field(default_factory=list)

    def __post_init__(self):
        sums = self.index.groupby("topic")["posts"].agg(["sum", "max"]).sort_values("sum", ascending=False)
        large = sums.index[sums["max"] >= self.config.min_posts]
        hot = dict.fromkeys(a.topic for a in self.alerts)
        self.topics.extend(dict.fromkeys([*hot, *large]))

    @property
    def drifted(self) -> list[Drift]:
        """Return the measures whose drift is above the threshold."""
        return [d for d in self.drift or () if d.psi > self.config.drift_threshold]

    @property
    def shown(self) -> pd.DataFrame:
        """Return the windows on the page, of all topics."""
        reach = SHOWN[self.config.window] * STEP[self.config.window]
        return self.index[self.index["window"] > self.index["window"].max() - reach]

    def rows(self, topic: str) -> pd.DataFrame:
        """Return the topic's windows on the page."""
        shown = self.shown
        return shown[shown["topic"] == topic]

    def top(self) -> float:
        """Return the largest share of the curves' common scale."""
        shown = self.topics[: self.config.page_topics]
        large = self.index[self.index["topic"].isin(shown) & (self.index["decided"] >= self.config.min_posts)]
        return max(0.2, math.ceil(large["high"].quantile(0.995) * 10) / 10) if len(large) else 1.0


def verdict(page: Page) -> str:
    """Return a sentence on the number of alerts."""
    if not page.alerts:
        return "No topic's negative share is significantly above its own history."
    count = len(page.alerts)
    return f"{count} alert{'s' if count > 1 else ''}: negative shares significantly above the topic's own history."


def undecided(page: Page) -> tuple[list[str], bool]:
    """Return (sentences on the undecided posts, whether there are too many of them)."""
    config = page.config
    every = page.rows(ALL)
    if not config.abstain_below or every.empty:
        return [], False
    count, posts, usual = every["undecided"].sum(), every["posts"].sum(), page.usual_undecided
    beside = f"; of held-out texts of its training data {usual:.0%} are" if usual is not None else ""
    sentences = [
        f"{count:,} of {posts:,} posts shown here ({count / posts:.0%}) are undecided: the model's confidence is below "
        f"{config.abstain_below:g}{beside}. Shares are of the other posts."
    ]
    shown = page.shown  # all at once: there may be thousands of topics
    large = shown[shown["complete"].astype(bool) & (shown["posts"] >= config.min_posts)]
    latest = large.sort_values("window").groupby("topic").tail(1)
    last = {row.topic: row for row in latest[latest["undecided"] > MANY * latest["posts"]].itertuples()}
    mostly = [
        f"{topic} ({last[topic].undecided:,} of {last[topic].posts:,} on {moment(config, last[topic].window)})"
        for topic in page.topics
        if topic in last
    ]
    if mostly:
        more = f" and {len(mostly) - 5:,} more" if len(mostly) > 5 else ""
        sentences.append(f"Mostly undecided, so their share is unreliable: {', '.join(mostly[:5])}{more}.")
    many = count > MANY * posts or (usual is not None and count > TWICE * max(usual, LITTLE) * posts)
    return sentences, bool(mostly or many)


def moment(config: MonitorConfig, window: pd.Timestamp) -> str:
    """Return the start of a window in short."""
    return window.strftime("%d %b %H:00" if config.window == "hour" else "%d %b")


def summary(page: Page) -> list[list[str]]:
    """Return the table of topics: a header, then a row per topic with the latest large window and the usual share."""
    config = page.config
    body = []
    for topic in page.topics[:40]:
        rows = page.index[(page.index["topic"] == topic) & page.index["complete"].astype(bool)]
        large = rows[rows["decided"] >= config.min_posts]
        if large.empty:
            continue
        last, usual = large.iloc[-1], rows["negative"].sum() / rows["decided"].sum()
        doubling = "yes" if usual * rows["decided"].median() >= PROMISED else "not surely"
        doubling = doubling if usual < 0.5 else "can't double"
        left = [f"{rows['undecided'].sum() / rows['posts'].sum():.0%}"] if config.abstain_below else []
        body.append(
            [
                topic, f"{rows['posts'].sum():,}", f"{rows['posts'].median():,.0f}", *left, f"{usual:.0%}",
                f"{last['share']:.0%} ({last['low']:.0%} to {last['high']:.0%})", moment(config, last["window"]),
                doubling,
            ]
        )  # fmt: skip
    window, left = config.window, ["undecided"] if config.abstain_below else []
    latest = ["negative in all", f"latest large {window}", "when", "a doubling is seen"]
    return [["topic", "posts", f"per {window}", *left, *latest], *body]


def drift_sentences(page: Page) -> list[str]:
    """Return sentences on drift: the measures that drifted, or that none did, or why it is not known."""
    if page.drift is None:
        return ["Not compared: the training data of this version is not in this home."]
    if not page.drift:
        return [f"Not compared: fewer than {LEAST} posts."]
    if not page.drifted:
        most = page.drift[0]
        return [f"The latest posts are like the training data. Most changed is the {most.sentence()}."]
    return [f"Drifted: {d.sentence()}." for d in page.drifted]


def how(page: Page) -> list[str]:
    """Return the paragraphs on how to read the page."""
    c = page.config
    w = c.window
    paragraphs = [
        f"The index of a topic is the share of its posts that {page.model} labels {c.negative}, per {w} (UTC). The "
        f"band is the 95 % Wilson interval for this number of posts. It does not include the model's own errors"
        f"{f' (measured: {page.metric})' if page.metric else ''}.",
        f"The dashed line is the usual share of up to {HISTORY[w]} {w}s before. A red {w} is a surge: its share, alone "
        f"or with the {w} before it, has a probability below {c.rule.level:.1e} under the beta-binomial distribution "
        f"of the topic's own history, and is at least {c.min_ratio:g} times the usual. Chance alone raises at most "
        f"{c.false_alarms:g} alerts per topic and year.",
        f"{w.capitalize()}s with fewer than {c.min_posts} posts are not judged (grey dots), nor before a topic has "
        f"{MIN_HISTORY[w]} {w}s of history. A doubling is found within two {w}s in 95 of 100 cases if a usual {w} "
        f"has {PROMISED} negative posts or more and the share varies by chance alone. The share that the model "
        f"measures must double. The model mislabels some posts, so the true share may have to rise by more.",
        f"Drift: the latest {c.drift_posts:,} posts are compared with held-out texts of the training data by the "
        f"population stability index over deciles. A value above {c.drift_threshold:g} is drift and calls for a new "
        f"training.",
    ]
    if c.abstain_below:
        paragraphs.append(
            f"Undecided posts (confidence below {c.abstain_below:g}; the pale part of the bars) count neither as "
            f"negative nor as not negative. Shares, intervals, alerts and the minimum of {c.min_posts} posts refer to "
            f"decided posts; drift refers to all posts. More undecided posts than usual mean that people write about "
            f"things the model does not know. A falling share is then no good news."
        )
    if page.cut:
        paragraphs.append(f"{page.cut:,} posts exceed the context of the model and were cut at their end.")
    return paragraphs


def render(page: Page) -> str:
    """Return the page as one self-contained HTML file."""
    sentences, many = undecided(page)
    return html.render(
        "monitor.html",
        title=f"Sentiment of {page.config.name}",
        lead=lead(page),
        note=page.note,
        verdict=verdict(page),
        undecided=sentences,
        many_undecided=many,
        alerts=[
            (alert.sentence(page.config.window), texts)
            for alert, texts in zip(page.alerts[:12], page.examples[:12], strict=True)
        ],
        window=page.config.window,
        panels=panels(page),
        topics=summary(page),
        drift=drift_sentences(page),
        drifted=bool(page.drifted),
        measures=[measured(d) for d in page.drift or ()],
        how=how(page),
        left_out=f"{len(page.troubles):,}" if page.troubles else "",
        troubles=page.troubles[:20],
    )


def lead(page: Page) -> str:
    """Return the line below the title: the number of posts, the latest time, and the model."""
    latest = page.index["window"].max() if len(page.index) else None
    when = "%d %b %Y" if page.config.window == "day" else "%d %b %Y %H:00 UTC"
    posts = f"{page.posts:,} posts" + (f" up to {latest.strftime(when)}" if latest is not None else "")
    return f"{posts} · scored by {page.model}{f' · {page.metric}' if page.metric else ''}"


def panels(page: Page) -> list[dict[str, Any]]:
    """Return a panel for each of the first topics: its curve and its latest large window in words."""
    config, top, hot, shown = page.config, page.top(), {a.topic for a in page.alerts}, []
    for topic in page.topics[: config.page_topics]:
        rows = page.rows(topic)
        if rows.empty:
            continue
        large = rows[rows["decided"] >= config.min_posts]
        what = "decided posts" if config.abstain_below else "posts"
        last = f"{large.iloc[-1]['share']:.0%} of {large.iloc[-1]['decided']:,} {what}, latest" if len(large) else ""
        svg = curve(rows, config.window, config.min_posts, top)
        shown.append({"topic": topic, "latest": last, "hot": topic in hot, "curve": svg})
    return shown


def measured(drift: Drift) -> list[html.Cell]:
    """Return a measure's row of the drift table: its index, both medians and both distributions."""
    tallest = max(max(pair) for pair in drift.shares)
    bins = [(p / tallest, q / tallest) for p, q in drift.shares]
    return [MEASURES[drift.measure], f"{drift.psi:.2f}", f"{drift.before:.3g}", f"{drift.now:.3g}", {"bins": bins}]


def markdown(page: Page, path: str) -> str:
    """Return the page in short as Markdown, for Prefect."""
    lines = [f"# Sentiment of {page.config.name}", "", f"**{verdict(page)}**", ""]
    if page.note:
        lines += [f"> {page.note}", ""]
    for text in undecided(page)[0]:
        lines += [flat(text), ""]
    for alert, texts in list(zip(page.alerts, page.examples, strict=True))[:5]:
        lines += [f"* {flat(alert.sentence(page.config.window))}", *(f"  * “{flat(text)}”" for text in texts)]
    for topic in list(dict.fromkeys(a.topic for a in page.alerts))[:3] or page.topics[:1]:
        drawn = image(page.rows(topic), page.config.window, page.config.min_posts, page.top())
        lines += ["", f"**{flat(topic)}**", "", f"![{flat(topic)}]({drawn})"]
    header, *body = summary(page)
    lines += ["", table(header, body[:20], flat)]
    lines += ["", "## Drift", "", *(f"* {flat(text)}" for text in drift_sentences(page))]
    if page.troubles:
        lines += ["", f"{len(page.troubles):,} rows or files were left out, such as {flat(page.troubles[0])}."]
    return "\n".join([*lines, "", f"The page with all curves: `{path}`; scored by {page.model}."]) + "\n"
