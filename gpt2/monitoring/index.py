"""The sentiment index: scored posts counted by topic and window, with its uncertainty, judged by the rule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from gpt2.data.text import topics_of
from gpt2.evaluation.significance import wilson
from gpt2.monitoring.alerts import Rule, judge
from gpt2.monitoring.config import MonitorConfig

ALL = "all posts"
FREQUENCY = {"hour": "h", "day": "D"}
STEP = {window: pd.Timedelta(1, unit=unit) for window, unit in FREQUENCY.items()}
"""From a window to the next."""
PROMISED = 40
"""Negative posts that a topic must have in a usual window for a doubling to be found within two windows in 95 of 100
cases, windows being of uneven size (`tests/gpt2/test_surges.py`, `tests/benchmarks/surges.py`)."""


@dataclass(frozen=True)
class Alert:
    """A topic whose negative share surges."""

    topic: str
    start: pd.Timestamp
    """Of the first window that surges (UTC)."""
    windows: int
    """That surge, up to now."""
    posts: int
    """In it, without the undecided."""
    negative: int
    expected: float
    """Share that the history led to expect."""
    p_value: float
    undecided: int = 0
    """Posts in it beside those."""

    @property
    def share(self) -> float:
        """Of the negative posts among the decided ones in the first window."""
        return self.negative / max(self.posts, 1)

    def sentence(self, window: str) -> str:
        """For people."""
        when = self.start.strftime("%Y-%m-%d %H:00" if window == "hour" else "%Y-%m-%d")
        going = f", for {self.windows} {window}s" if self.windows > 1 else ""
        decided, beside = ("decided ", f" ({self.undecided:,} more undecided)") if self.undecided else ("", "")
        return (
            f"{self.topic}: {self.share:.0%} of {self.posts:,} {decided}posts are negative on {when}{going}{beside}; "
            f"usual is {self.expected:.0%}"
        )


def topic_lists(posts: pd.DataFrame, config: MonitorConfig) -> list[list[str]]:
    """Topics of each post, `ALL` among them."""
    if config.topic_field:
        return [[ALL, *([topic] if isinstance(topic, str) else [])] for topic in posts["topic"]]
    return [[ALL, *topics_of(text, config.topics)] for text in posts["text"]]


def aggregate(scored: pd.DataFrame, config: MonitorConfig, until: pd.Timestamp, version: str) -> pd.DataFrame:
    """A row per topic and window: `posts`, `decided` and `undecided` ones, `negative`, `share` with `low` and `high`
    (95 %, Wilson), `confidence` (mean of all), `expected`, `p_value`, `surge`, `complete`.

    `scored` has `time`, `topics`, `label`, `confidence`, `version`. A post is undecided where its confidence is below
    `abstain_below`: that is found here, of all posts by the same setting, so that no change of it looks like a surge.
    Negative, share (NaN where nothing is decided) and the rule are of the decided ones. Windows are complete before
    `until`; others are not judged, and neither are those that another version of the model has scored. The interval
    says how far chance in which posts were written may move the share; not how often the model errs.
    """
    if scored.empty:
        return pd.DataFrame(columns=INDEX_COLUMNS)
    decided = scored["confidence"] >= config.abstain_below
    table = pd.DataFrame(
        {
            "topic": scored["topics"],
            "window": scored["time"].dt.floor(FREQUENCY[config.window]),
            "decided": decided.astype(int),
            "negative": (decided & (scored["label"] == config.negative)).astype(int),
            "confidence": scored["confidence"],
            "old": (scored["version"] != version).astype(int),
        }
    ).explode("topic")
    counted = table.groupby(["topic", "window"], sort=True, observed=True).agg(
        posts=("decided", "size"), decided=("decided", "sum"), negative=("negative", "sum"),
        confidence=("confidence", "mean"), old=("old", "sum"),
    )  # fmt: skip
    rows = counted.reset_index()
    rows["undecided"] = rows["posts"] - rows["decided"]
    rows["share"] = rows["negative"] / rows["decided"]
    rows["low"], rows["high"] = wilson(rows["negative"].to_numpy(), rows["decided"].to_numpy())
    rows["complete"] = rows["window"] < until
    rows[["expected", "p_value"]] = np.nan
    rows["surge"] = False
    whole = rows["window"][rows["complete"]]
    calendar = pd.date_range(whole.min(), whole.max(), freq=FREQUENCY[config.window]) if len(whole) else whole
    # Of the many topics that have fewer nothing is judged.
    large = rows.groupby("topic")["decided"].transform("sum") >= config.min_posts
    for _, topic in rows[large & rows["complete"]].groupby("topic", sort=False):
        judge_topic(rows, topic, calendar, config.rule)
    return rows.drop(columns="old")[INDEX_COLUMNS]


INDEX_COLUMNS = [
    "topic", "window", "posts", "decided", "undecided", "negative", "share", "low", "high", "confidence", "expected",
    "p_value", "surge", "complete",
]  # fmt: skip


def judge_topic(rows: pd.DataFrame, topic: pd.DataFrame, calendar: pd.DatetimeIndex, rule: Rule) -> None:
    """Fill in what the rule says of the complete windows of one topic."""
    usable = topic["old"] == 0
    places = calendar.get_indexer(pd.DatetimeIndex(topic["window"]))
    negative, posts = np.zeros(len(calendar)), np.zeros(len(calendar))
    negative[places], posts[places] = topic["negative"] * usable, topic["decided"] * usable
    judged = judge(negative, posts, rule)
    rows.loc[topic.index, "expected"] = np.where(usable, judged.expected[places], np.nan)
    rows.loc[topic.index, "p_value"] = np.where(usable, judged.p_value[places], np.nan)
    rows.loc[topic.index, "surge"] = judged.surge[places] & usable.to_numpy()


def alerts(index: pd.DataFrame, config: MonitorConfig) -> list[Alert]:
    """Windows that surge in a row are one alert; the newest first."""
    found = []
    for topic, rows in index[index["surge"].astype(bool)].groupby("topic"):
        episode = (rows["window"].diff() != STEP[config.window]).cumsum()
        for _, windows in rows.groupby(episode):
            first = windows.iloc[0]
            numbers = int(first["decided"]), int(first["negative"]), float(first["expected"]), float(first["p_value"])
            found.append(Alert(str(topic), first["window"], len(windows), *numbers, int(first["undecided"])))
    return sorted(found, key=lambda a: (a.start, a.topic), reverse=True)
