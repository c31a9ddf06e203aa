"""What an analyst looks at: alerts first, then the index of each topic over time, drift, and how to read it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from gpt2 import curves
from gpt2.drift import LEAST, MEASURES, Drift
from gpt2.index import ALL, PROMISED, STEP, Alert
from gpt2.monitor import MonitorConfig
from gpt2.report import flat
from gpt2.surges import HISTORY, MIN_HISTORY

SHOWN = {"hour": 14 * 24, "day": 120}
"""Windows on the page."""
MANY, TWICE, LITTLE = 0.5, 2.0, 0.01
"""A share of undecided posts above which, or so many times that of held-out texts, the page warns; where nearly all of
these are decided, so small a share counts as theirs."""
STYLE = (
    """
:root{--ink:#1f2328;--paper:#fff;--card:#f6f8fa;--muted:#656d76;--grid:#d8dee4;--accent:#1f6feb;
--alarm:#cf222e;--good:#1a7f37}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--card:#161b22;--muted:#8d96a0;
--grid:#30363d;--accent:#4493f8;--alarm:#f85149;--good:#3fb950}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:72rem;
margin:2rem auto;padding:0 1rem}h1{margin:0;font-size:1.7rem}h2{margin:2.2rem 0 .8rem;font-size:1.2rem}
.lead{color:var(--muted);margin:.2rem 0 1.2rem}
.card{background:var(--card);border-radius:8px;padding:1rem 1.2rem;margin:.8rem 0}
.alarm{border-left:5px solid var(--alarm)}.good{border-left:5px solid var(--good)}
.note{border-left:5px solid #bf8700}.alarm b{color:var(--alarm)}
blockquote{margin:.5rem 0 0;padding-left:.8rem;border-left:2px solid var(--grid);color:var(--muted)}
.grid-of{display:grid;grid-template-columns:repeat(auto-fill,minmax(27rem,1fr));gap:1rem}
.panel{background:var(--card);border-radius:8px;padding:.7rem .9rem .3rem}
.panel h3{margin:0;font-size:1rem;display:flex;justify-content:space-between;gap:1rem}
.panel h3 span{font-weight:400;color:var(--muted)}.panel svg{width:100%;height:auto}
.panel.hot h3{color:var(--alarm)}table{border-collapse:collapse;width:100%}
td,th{padding:.3rem .7rem;border-bottom:1px solid var(--grid);text-align:right;font-variant-numeric:tabular-nums}
td:first-child,th:first-child{text-align:left}th{color:var(--muted);font-weight:500}
.bins{display:inline-flex;align-items:flex-end;gap:2px;height:34px}
.bins i{display:inline-flex;align-items:flex-end;gap:1px}.bins u{width:5px;background:var(--muted);opacity:.5}
.bins s{width:5px;background:var(--accent)}.small,details{font-size:.9rem;color:var(--muted)}
@media(max-width:32rem){.grid-of{grid-template-columns:1fr}}
"""
    + curves.STYLE
)


@dataclass(frozen=True)
class Page:
    """Everything on the page."""

    config: MonitorConfig
    model: str
    """Its exact address."""
    metric: str
    """How good it is, as `macro f1 0.71`."""
    index: pd.DataFrame
    alerts: Sequence[Alert]
    examples: Sequence[Sequence[str]]
    """Of each alert: texts."""
    drift: Sequence[Drift] | None
    """None where there is nothing to compare with."""
    posts: int
    troubles: Sequence[str] = ()
    """What could not be read."""
    note: str = ""
    """Something to say first."""
    usual_undecided: float | None = None
    """Share of held-out texts of the training data that `abstain_below` leaves undecided, where there are any."""
    cut: int = 0
    """Posts that are longer than what the model reads."""
    topics: list[str] = field(default_factory=list)

    def __post_init__(self):
        sums = self.index.groupby("topic")["posts"].agg(["sum", "max"]).sort_values("sum", ascending=False)
        large = sums.index[sums["max"] >= self.config.min_posts]
        hot = dict.fromkeys(a.topic for a in self.alerts)
        self.topics.extend(dict.fromkeys([*hot, *large]))

    @property
    def drifted(self) -> list[Drift]:
        return [d for d in self.drift or () if d.psi > self.config.drift_threshold]

    @property
    def shown(self) -> pd.DataFrame:
        """The windows on the page, of all topics."""
        reach = SHOWN[self.config.window] * STEP[self.config.window]
        return self.index[self.index["window"] > self.index["window"].max() - reach]

    def rows(self, topic: str) -> pd.DataFrame:
        """The topic's windows on the page."""
        shown = self.shown
        return shown[shown["topic"] == topic]

    def top(self) -> float:
        """The largest share that curves show: one scale for all."""
        shown = self.topics[: self.config.page_topics]
        large = self.index[self.index["topic"].isin(shown) & (self.index["decided"] >= self.config.min_posts)]
        return max(0.2, math.ceil(large["high"].quantile(0.995) * 10) / 10) if len(large) else 1.0


def verdict(page: Page) -> str:
    """The page in a sentence."""
    if not page.alerts:
        return "No topic's negative share is above what its own history explains."
    count = len(page.alerts)
    return f"{count} alert{'s' if count > 1 else ''}: negative posts beyond what the topic's own history explains."


def undecided(page: Page) -> tuple[list[str], bool]:
    """(what to say of the posts of which the model was not sure enough, whether they are many)."""
    config = page.config
    every = page.rows(ALL)
    if not config.abstain_below or every.empty:
        return [], False
    count, posts, usual = every["undecided"].sum(), every["posts"].sum(), page.usual_undecided
    beside = f"; of held-out texts of its training data {usual:.0%} are" if usual is not None else ""
    told = [
        f"{count:,} of {posts:,} posts shown here ({count / posts:.0%}) are undecided, the model's confidence in them "
        f"being below {config.abstain_below:g}{beside}. Shares are of the others."
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
        told.append(f"Mostly undecided, so that their share says little: {', '.join(mostly[:5])}{more}.")
    many = count > MANY * posts or (usual is not None and count > TWICE * max(usual, LITTLE) * posts)
    return told, bool(mostly or many)


def moment(config: MonitorConfig, window: pd.Timestamp) -> str:
    """When a window begins, in short."""
    return window.strftime("%d %b %H:00" if config.window == "hour" else "%d %b")


def summary(page: Page) -> list[list[str]]:
    """Header and a row per topic: the latest whole window beside the usual."""
    config = page.config
    body = []
    for topic in page.topics[:40]:
        rows = page.index[(page.index["topic"] == topic) & page.index["complete"].astype(bool)]
        large = rows[rows["decided"] >= config.min_posts]
        if large.empty:
            continue
        last, usual = large.iloc[-1], rows["negative"].sum() / rows["decided"].sum()
        found = "yes" if usual * rows["decided"].median() >= PROMISED else "not surely"
        found = found if usual < 0.5 else "can't double"
        left = [f"{rows['undecided'].sum() / rows['posts'].sum():.0%}"] if config.abstain_below else []
        body.append(
            [
                topic, f"{rows['posts'].sum():,}", f"{rows['posts'].median():,.0f}", *left, f"{usual:.0%}",
                f"{last['share']:.0%} ({last['low']:.0%} to {last['high']:.0%})", moment(config, last["window"]), found,
            ]
        )  # fmt: skip
    window, left = config.window, ["undecided"] if config.abstain_below else []
    latest = ["negative in all", f"latest large {window}", "when", "a doubling is seen"]
    return [["topic", "posts", f"per {window}", *left, *latest], *body]


def drift_sentences(page: Page) -> list[str]:
    """What drifted, or that nothing did, or why that is not known."""
    if page.drift is None:
        return ["Not compared: the training data of this version is not in this home."]
    if not page.drift:
        return [f"Not compared: fewer than {LEAST} posts."]
    if not page.drifted:
        most = page.drift[0]
        return [f"The latest posts are like the training data. Most changed is the {most.sentence()}."]
    return [f"Drifted: {d.sentence()}." for d in page.drifted]


def how(page: Page) -> list[str]:
    """How to read it."""
    c = page.config
    w = c.window
    told = [
        f"The index of a topic is the share of its posts that {page.model} reads as {c.negative}, per {w} (UTC). The "
        f"band is the 95 % interval (Wilson) for the number of posts; it leaves out the model's own mistakes"
        f"{f' (measured: {page.metric})' if page.metric else ''}.",
        f"The dashed line is the usual share, of up to {HISTORY[w]} {w}s before. A red {w} has a share which, alone or "
        f"with the {w} before it, has a probability below {c.rule.level:.1e} under the beta-binomial distribution that "
        f"the topic's own history gives, and is at least {c.min_ratio:g} times the usual. Chance alone raises at most "
        f"{c.false_alarms:g} alerts per topic and year.",
        f"{w.capitalize()}s with fewer than {c.min_posts} posts are not judged (grey dots), nor before a topic has "
        f"{MIN_HISTORY[w]} {w}s of history. A doubling is found within two {w}s in 95 of 100 cases where a usual {w} "
        f"has {PROMISED} negative posts or more, as long as the share varies by chance alone. What must double is "
        f"the share that the model reads: it misreads some posts, so the true one may have to rise by more.",
        f"Drift: the latest {c.drift_posts:,} posts beside held-out texts of the training data, by the population "
        f"stability index over deciles; above {c.drift_threshold:g} is called drift, and asks for a new training.",
    ]
    if c.abstain_below:
        told.append(
            f"Undecided posts (confidence below {c.abstain_below:g}; the pale part of the bars) count neither as "
            f"negative nor as not: shares, intervals and alerts are of decided posts, and so is the least number of "
            f"{c.min_posts}. Drift looks at all posts. More undecided posts than usual mean that people write what the "
            f"model does not know; a share that falls meanwhile is no good news."
        )
    if page.cut:
        told.append(f"{page.cut:,} posts are longer than what the model reads, and were cut at their end.")
    return told


def render(page: Page) -> str:
    """One HTML file that needs no other."""
    e, config = html.escape, page.config
    latest = page.index["window"].max() if len(page.index) else None
    when = "%d %b %Y" if config.window == "day" else "%d %b %Y %H:00 UTC"
    told = f"{page.posts:,} posts" + (f" up to {latest.strftime(when)}" if latest is not None else "")
    parts = [
        f"<h1>Sentiment of {e(config.name)}</h1>"
        f'<p class="lead">{told} · scored by {e(page.model)}{f" · {e(page.metric)}" if page.metric else ""}</p>'
    ]
    if page.note:
        parts.append(f'<div class="card note">{e(page.note)}</div>')
    parts.append(f'<div class="card {"alarm" if page.alerts else "good"}"><b>{e(verdict(page))}</b></div>')
    told_undecided, many = undecided(page)
    if told_undecided:
        parts.append(f'<div class="card{" note" if many else ""}">{"<br>".join(map(e, told_undecided))}</div>')
    for alert, texts in list(zip(page.alerts, page.examples, strict=True))[:12]:
        quotes = "".join(f"<blockquote>{e(text)}</blockquote>" for text in texts)
        parts.append(f'<div class="card alarm"><b>{e(alert.sentence(config.window))}.</b>{quotes}</div>')
    parts.append(f'<h2>Negative share by {config.window}</h2><div class="grid-of">')
    top, hot = page.top(), {a.topic for a in page.alerts}
    for topic in page.topics[: config.page_topics]:
        rows = page.rows(topic)
        if rows.empty:
            continue
        large = rows[rows["decided"] >= config.min_posts]
        what = "decided posts" if config.abstain_below else "posts"
        last = f"{large.iloc[-1]['share']:.0%} of {large.iloc[-1]['decided']:,} {what}, latest" if len(large) else ""
        svg = curves.curve(rows, config.window, config.min_posts, top)
        parts.append(
            f'<div class="panel{" hot" if topic in hot else ""}"><h3>{e(topic)}<span>{last}</span></h3>{svg}</div>'
        )
    parts.append("</div>")
    header, *body = summary(page)
    cells = "".join(f"<th>{e(c)}</th>" for c in header)
    lines = "".join("<tr>" + "".join(f"<td>{e(c)}</td>" for c in row) + "</tr>" for row in body)
    parts.append(f"<h2>Topics</h2><table><tr>{cells}</tr>{lines}</table>")
    parts.append("<h2>Drift</h2>" + "".join(
        f'<div class="card {"note" if page.drifted else "good"}">{e(text)}</div>' for text in drift_sentences(page)
    ))  # fmt: skip
    if page.drift:
        parts.append(drift_table(page))
    parts.append("<h2>How to read this</h2>" + "".join(f'<p class="small">{e(text)}</p>' for text in how(page)))
    if page.troubles:
        items = "".join(f"<li>{e(text)}</li>" for text in page.troubles[:20])
        parts.append(
            f"<details><summary>{len(page.troubles):,} rows or files left out</summary><ul>{items}</ul></details>"
        )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Sentiment of {e(config.name)}</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


def drift_table(page: Page) -> str:
    """Each measure: its index and both distributions."""
    rows = []
    for d in page.drift or ():
        tallest = max(max(pair) for pair in d.shares)
        bins = "".join(
            f'<i><u style="height:{34 * p / tallest:.0f}px"></u><s style="height:{34 * q / tallest:.0f}px"></s></i>'
            for p, q in d.shares
        )
        name = html.escape(MEASURES[d.measure])
        rows.append(
            f"<tr><td>{name}</td><td>{d.psi:.2f}</td><td>{d.before:.3g}</td><td>{d.now:.3g}</td>"
            f'<td><span class="bins">{bins}</span></td></tr>'
        )
    return (
        "<table><tr><th>measure</th><th>PSI</th><th>training data, median</th><th>latest posts, median</th>"
        f"<th>shares by decile: grey training data, blue latest</th></tr>{''.join(rows)}</table>"
    )


def markdown(page: Page, path: str) -> str:
    """The page in short, for Prefect."""
    lines = [f"# Sentiment of {page.config.name}", "", f"**{verdict(page)}**", ""]
    if page.note:
        lines += [f"> {page.note}", ""]
    for text in undecided(page)[0]:
        lines += [flat(text), ""]
    for alert, texts in list(zip(page.alerts, page.examples, strict=True))[:5]:
        lines += [f"* {flat(alert.sentence(page.config.window))}", *(f"  * “{flat(text)}”" for text in texts)]
    for topic in list(dict.fromkeys(a.topic for a in page.alerts))[:3] or page.topics[:1]:
        svg = curves.curve(page.rows(topic), page.config.window, page.config.min_posts, page.top())
        lines += ["", f"**{flat(topic)}**", "", f"![{flat(topic)}]({curves.image(svg)})"]
    header, *body = summary(page)
    lines += ["", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(flat(c) for c in row) + " |" for row in body[:20]]
    lines += ["", "## Drift", "", *(f"* {flat(text)}" for text in drift_sentences(page))]
    if page.troubles:
        lines += ["", f"{len(page.troubles):,} rows or files were left out, such as {flat(page.troubles[0])}."]
    return "\n".join([*lines, "", f"The page with all curves: `{path}`; scored by {page.model}."]) + "\n"
