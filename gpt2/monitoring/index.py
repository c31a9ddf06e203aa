"""The sentiment index: negative shares by topic and window, with intervals, judged by the rule for surges."""

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
"""Length of a window."""
PROMISED = 40
"""Negative posts in a usual window with which a doubling is detected within two windows in 95 of 100 cases. Windows
have uneven sizes there (`tests/gpt2/monitoring/test_surges.py`, `tests/benchmarks/surges.py`)."""


@dataclass(frozen=True)
class Alert:
    """A surge of a topic's negative share."""

    topic: str
    start: pd.Timestamp
    """Start of the first surging window (UTC)."""
    windows: int
    """Number of surging windows up to now."""
    posts: int
    """Decided posts in the first window."""
    negative: int
    expected: float
    """Share expected from the history."""
    p_value: float
    undecided: int = 0
    """Undecided posts in the first window, besides `posts`."""

    @property
    def share(self) -> float:
        """Return the share of negative posts among the decided ones in the first window."""
        return self.negative / max(self.posts, 1)

    def sentence(self, window: str) -> str:
        """Return the alert as a sentence; `window` is `hour` or `day`."""
        when = self.start.strftime("%Y-%m-%d %H:00" if window == "hour" else "%Y-%m-%d")
        going = f", for {self.windows} {window}s" if self.windows > 1 else ""
        decided, beside = ("decided ", f" ({self.undecided:,} more undecided)") if self.undecided else ("", "")
        return (
            f"{self.topic}: {self.share:.0%} of {self.posts:,} {decided}posts are negative on {when}{going}{beside}; "
            f"usual is {self.expected:.0%}"
        )


def topic_lists(posts: pd.DataFrame, config: MonitorConfig) -> list[list[str]]:
    """Return the topics of each post, `ALL` first."""
    if config.topic_field:
        return [[ALL, *([topic] if isinstance(topic, str) else [])] for topic in posts["topic"]]
    return [[ALL, *topics_of(text, config.topics)] for text in posts["text"]]


def aggregate(scored: pd.DataFrame, config: MonitorConfig, until: pd.Timestamp, version: str) -> pd.DataFrame:
    """Return the index: a row per topic and window with the columns `INDEX_COLUMNS`.

    `share` has its 95 % Wilson interval, `low` to `high`; `confidence` is the mean of all posts. `scored` has `time`,
    `topics`, `label`, `confidence` and `version`. A post is undecided if its confidence is below `abstain_below`. This
    is decided here for all posts alike, so that a change of the setting never looks like a surge. `negative`, `share`
    (NaN without decided posts) and the rule use decided posts only. Windows are complete before `until`. Incomplete
    windows, and those scored by another version of the model, are not judged. The interval covers sampling of the
    posts, not the model's errors.
    """
    return finished(sums(scored, config, version), config, until)


SUMS = ["topic", "window", "posts", "decided", "negative", "confidence", "old"]
"""Columns of the sums: the number of posts, of the decided and of the negative ones among them, the sum of their
confidences, and the number scored by another version."""


def sums(scored: pd.DataFrame, config: MonitorConfig, version: str) -> pd.DataFrame:
    """Return the sums over the scored posts, a row per topic and window with the columns `SUMS`; see `aggregate`."""
    if scored.empty:
        return pd.DataFrame(columns=SUMS)
    decided = scored["confidence"] >= config.abstain_below
    table = pd.DataFrame(
        {
            "topic": scored["topics"],
            "window": scored["time"].dt.floor(FREQUENCY[config.window]),
            "posts": 1,
            "decided": decided.astype(int),
            "negative": (decided & (scored["label"] == config.negative)).astype(int),
            "confidence": scored["confidence"],
            "old": (scored["version"] != version).astype(int),
        }
    ).explode("topic")
    return table.groupby(["topic", "window"], sort=True, observed=True).sum().reset_index()[SUMS]


def added(some: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """Return the sums over the posts of both."""
    if some.empty or more.empty:
        return more if some.empty else some
    return pd.concat([some, more]).groupby(["topic", "window"], sort=True, observed=True).sum().reset_index()[SUMS]


def finished(rows: pd.DataFrame, config: MonitorConfig, until: pd.Timestamp) -> pd.DataFrame:
    """Return the index of `sums`; see `aggregate`."""
    if rows.empty:
        return pd.DataFrame(columns=INDEX_COLUMNS)
    rows = rows.assign(confidence=rows["confidence"] / rows["posts"])
    rows["undecided"] = rows["posts"] - rows["decided"]
    rows["share"] = rows["negative"] / rows["decided"]
    rows["low"], rows["high"] = wilson(rows["negative"].to_numpy(), rows["decided"].to_numpy())
    rows["complete"] = rows["window"] < until
    rows[["expected", "p_value"]] = np.nan
    rows["surge"] = False
    whole = rows["window"][rows["complete"]]
    calendar = pd.date_range(whole.min(), whole.max(), freq=FREQUENCY[config.window]) if len(whole) else whole
    # Most topics have fewer posts: skip them, as nothing of them is judged.
    large = rows.groupby("topic")["decided"].transform("sum") >= config.min_posts
    for _, topic in rows[large & rows["complete"]].groupby("topic", sort=False):
        judge_topic(rows, topic, calendar, config.rule)
    return rows.drop(columns="old")[INDEX_COLUMNS]


INDEX_COLUMNS = [
    "topic", "window", "posts", "decided", "undecided", "negative", "share", "low", "high", "confidence", "expected",
    "p_value", "surge", "complete",
]  # fmt: skip


def judge_topic(rows: pd.DataFrame, topic: pd.DataFrame, calendar: pd.DatetimeIndex, rule: Rule) -> None:
    """Set `expected`, `p_value` and `surge` of one topic's complete windows in `rows` by the rule."""
    usable = topic["old"] == 0
    places = calendar.get_indexer(pd.DatetimeIndex(topic["window"]))
    negative, posts = np.zeros(len(calendar)), np.zeros(len(calendar))
    negative[places], posts[places] = topic["negative"] * usable, topic["decided"] * usable
    judged = judge(negative, posts, rule)
    rows.loc[topic.index, "expected"] = np.where(usable, judged.expected[places], np.nan)
    rows.loc[topic.index, "p_value"] = np.where(usable, judged.p_value[places], np.nan)
    rows.loc[topic.index, "surge"] = judged.surge[places] & usable.to_numpy()


def alerts(index: pd.DataFrame, config: MonitorConfig) -> list[Alert]:
    """Return the alerts of an index, newest first; consecutive surging windows are one alert."""
    surges = []
    for topic, rows in index[index["surge"].astype(bool)].groupby("topic"):
        episode = (rows["window"].diff() != STEP[config.window]).cumsum()
        for _, windows in rows.groupby(episode):
            first = windows.iloc[0]
            numbers = int(first["decided"]), int(first["negative"]), float(first["expected"]), float(first["p_value"])
            surges.append(Alert(str(topic), first["window"], len(windows), *numbers, int(first["undecided"])))
    return sorted(surges, key=lambda a: (a.start, a.topic), reverse=True)
