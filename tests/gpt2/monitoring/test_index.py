"""The index by topic and window, its alerts, and the page."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.monitoring import index as monitoring_index
from gpt2.monitoring.alerts import MEASURES, Drift, judge
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.index import ALL, aggregate, alerts
from gpt2.monitoring.page import Page, markdown, render, undecided

CONFIG = MonitorConfig(window="day", name="made-up")
START = pd.Timestamp("2026-01-01", tz="UTC")


def scored(days: int = 40, surge: int | None = 35) -> pd.DataFrame:
    """40 posts a day about each of two topics, a quarter negative; from `surge` on, @air has 70 % for two days."""
    generator, rows = np.random.default_rng(0), []
    for day in range(days):
        for topic, share in (("@air", 0.7 if surge is not None and 0 <= day - surge < 2 else 0.25), ("#calm", 0.25)):
            rows += [(START + pd.Timedelta(days=day, minutes=i), [ALL, topic], s) for i, s in
                     enumerate(np.where(generator.random(40) < share, "negative", "positive"))]  # fmt: skip
    table = pd.DataFrame(rows, columns=["time", "topics", "label"])
    return table.assign(confidence=0.8, version="models:/m/2")


def built(posts: pd.DataFrame, config: MonitorConfig = CONFIG):
    return aggregate(posts, config, posts["time"].max().floor("D") + pd.Timedelta(days=1), "models:/m/2")


def abstaining(least: float) -> MonitorConfig:
    return CONFIG.model_copy(update={"abstain_below": least})


def about(posts: pd.DataFrame, topic: str) -> np.ndarray:
    return np.array([topic in topics for topics in posts["topics"]])


def unsure(posts: pd.DataFrame) -> pd.DataFrame:
    """The same with confidences of all kinds, some of them equal to a setting."""
    return posts.assign(confidence=np.random.default_rng(1).uniform(0.4, 1, len(posts)).round(2))


def test_counts_are_those_of_a_plain_loop():
    posts = scored()
    index = built(posts)
    for row in index.sample(20, random_state=0).itertuples():
        day = posts[posts["time"].dt.floor("D") == row.window]
        mine = [label for label, topics in zip(day["label"], day["topics"], strict=True) if row.topic in topics]
        assert (row.posts, row.negative) == (len(mine), mine.count("negative"))
        assert row.low < row.share < row.high


@pytest.mark.parametrize("least", [0.0, 0.6, 1.0])
def test_undecided_posts_are_counted_and_count_for_nothing_else(least):
    posts = unsure(scored())
    index = built(posts, abstaining(least))
    for row in index.sample(20, random_state=0).itertuples():
        day = posts[(posts["time"].dt.floor("D") == row.window) & about(posts, row.topic)]
        sure = [label for label, c in zip(day["label"], day["confidence"], strict=True) if c >= least]
        assert (row.posts, row.decided, row.undecided) == (len(day), len(sure), len(day) - len(sure))
        assert row.negative == sure.count("negative") and row.confidence == pytest.approx(day["confidence"].mean())
        assert row.share == pytest.approx(row.negative / len(sure)) if sure else np.isnan(row.share)
    # What is left is judged as if the undecided had never been written.
    alone = built(posts[posts["confidence"] >= least], abstaining(0.0))
    both = index.merge(alone, on=["topic", "window"], suffixes=("", "_alone"))
    for name in ("negative", "share", "low", "high", "expected", "p_value", "surge"):
        assert both[name].equals(both[f"{name}_alone"])
    assert len(both) == (index["decided"] > 0).sum() and not index["surge"][index["decided"] == 0].any()


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=10, deadline=None)
def test_a_higher_setting_decides_no_more(one, other):
    posts = unsure(scored(days=2))
    mild, strict = (built(posts, abstaining(least)) for least in sorted((one, other)))
    assert (mild["decided"] >= strict["decided"]).all() and (mild["negative"] >= strict["negative"]).all()
    assert (mild["posts"] == strict["posts"]).all() and (strict["undecided"] <= strict["posts"]).all()


def test_a_surge_of_undecided_posts_is_none_and_one_of_decided_posts_is_told_with_them():
    posts = scored()
    surging = (posts["time"] >= START + pd.Timedelta(days=35)) & (posts["label"] == "negative")
    surging &= about(posts, "@air")
    doubtful = posts.assign(confidence=np.where(surging, 0.5, 0.8))
    assert alerts(built(doubtful), CONFIG) and not alerts(built(doubtful, abstaining(0.6)), abstaining(0.6))
    more = posts[(posts["time"].dt.floor("D") == START + pd.Timedelta(days=35)) & (posts["label"] == "positive")]
    config = abstaining(0.6)
    [alert] = alerts(built(pd.concat([posts, more.assign(confidence=0.5)]), config), config)
    assert alert.undecided == about(more, "@air").sum() > 0 and alert.posts == 40
    assert "of 40 decided posts are negative on" in alert.sentence("day")
    assert f"({alert.undecided} more undecided); usual is" in alert.sentence("day")


def test_the_page_says_how_many_are_undecided_and_where_nearly_all_are():
    posts = scored(surge=None)
    last = (posts["time"] >= START + pd.Timedelta(days=39)) & about(posts, "#calm")
    posts = posts.assign(confidence=np.where(last, 0.5, 0.8))
    config = abstaining(0.6)
    page = Page(config, "m", "", built(posts, config), [], [], None, len(posts), usual_undecided=0.01, cut=7)
    for text in (render(page), markdown(page, "x")):
        assert (
            "40 of 3,200 posts shown here (1%) are undecided" in text
            and "of held-out texts of its training data" in text
        )
        assert "Mostly undecided" in text and "calm (40 of 40 on 09 Feb)" in text and "<th>undecided" in render(page)
    text = render(page)
    assert 'class="card note"' in text and "nothing decided; 40 undecided" in text and 'class="open"' in text
    assert "nan" not in text and "7 posts exceed the context of the model" in text
    few = posts.assign(confidence=np.where(np.arange(len(posts)) % 10 == 0, 0.5, 0.8))
    calm = render(Page(config, "m", "", built(few, config), [], [], None, 10, usual_undecided=0.09))
    assert "(10%) are undecided" in calm and 'class="card note"' not in calm and "Mostly" not in calm
    often = render(Page(config, "m", "", built(few, config), [], [], None, 10, usual_undecided=0.04))
    assert 'class="card note"' in often
    assert "undecided" not in render(Page(CONFIG, "m", "", built(few), [], [], None, 10)).partition("<h1>")[2]


def test_of_texts_that_are_nearly_all_decided_as_usual_a_few_are_no_warning():
    posts, config = scored(surge=None), abstaining(0.6)
    for count, many in ((1, False), (30, False), (80, True)):  # of 3,200
        some = posts.assign(confidence=np.where(np.arange(len(posts)) % 40 == 0, 0.5, 0.8))
        some.loc[some.index[some["confidence"] < 0.6][count:], "confidence"] = 0.8
        page = Page(config, "m", "", built(some, config), [], [], None, len(posts), usual_undecided=0.0)
        assert (some["confidence"] < 0.6).sum() == count and undecided(page)[1] is many


def test_what_is_mostly_undecided_is_found_among_many_topics_in_one_go(monkeypatch):
    """As a loop over the topics finds it, but without looking through the whole index for each of them."""
    posts, config = scored(surge=None), abstaining(0.6)
    names = [f"@t{n:03}" for n in range(150)]
    more = pd.concat([posts.head(400)] * 15, ignore_index=True)
    more = more.assign(topics=[[names[n % 150]] for n in range(len(more))], time=posts["time"].max().floor("D"))
    doubtful = more["topics"].map(lambda topics: int(topics[0][2:]) % 3 == 0)
    posts = pd.concat([posts.assign(confidence=0.8), more.assign(confidence=np.where(doubtful, 0.5, 0.8))])
    index = built(posts, config)
    page = Page(config, "m", "", index, [], [], None, len(posts))
    asked, rows = [], Page.rows
    monkeypatch.setattr(Page, "rows", lambda self, topic: asked.append(topic) or rows(self, topic))
    told, many = undecided(page)
    last = {topic: of[of["complete"]].iloc[-1] for topic, of in index.groupby("topic")}
    mostly = [t for t in page.topics if last[t]["undecided"] > 0.5 * last[t]["posts"]]
    assert len(mostly) == 50 and many and f"{', '.join(f'{t} (40 of 40 on 09 Feb)' for t in mostly[:5])}" in told[1]
    assert told[1].endswith("and 45 more.") and len(asked) == 1


def test_the_planted_surge_is_the_only_alert():
    [alert] = alerts(built(scored()), CONFIG)
    assert alert.topic == "@air" and alert.start == START + pd.Timedelta(days=35) and alert.windows >= 2
    assert "of 40 posts are negative on 2026-02-05, for" in alert.sentence("day") and alert.expected < 0.3
    assert alerts(built(scored(surge=None)), CONFIG) == []


def test_a_window_that_is_not_over_or_of_another_version_is_not_judged():
    posts = scored(surge=39)
    open_ended = aggregate(posts, CONFIG, START + pd.Timedelta(days=39), "models:/m/2")
    assert alerts(built(posts), CONFIG) and not alerts(open_ended, CONFIG)
    assert alerts(aggregate(posts, CONFIG, START + pd.Timedelta(days=40), "models:/m/3"), CONFIG) == []


def test_a_time_far_away_costs_nothing_and_changes_nothing(monkeypatch):
    judged = []
    monkeypatch.setattr(monitoring_index, "judge", lambda k, n, rule: judged.append(len(k)) or judge(k, n, rule))
    posts = scored()
    until = posts["time"].max().floor("D") + pd.Timedelta(days=1)
    far = posts.iloc[[0]].assign(time=pd.Timestamp("2261-12-31", tz="UTC"))
    hourly = CONFIG.model_copy(update={"window": "hour"})
    both = aggregate(pd.concat([posts, far]), hourly, until, "models:/m/2")
    assert not both[both["window"] >= until]["complete"].any()
    assert both[both["window"] < until].reset_index(drop=True).equals(aggregate(posts, hourly, until, "models:/m/2"))
    assert set(judged) == {39 * 24 + 1}  # the calendar ends with the posts


def test_the_page_shows_alerts_first_and_runs_nothing_of_a_post():
    index = built(scored())
    found = alerts(index, CONFIG)
    drift = [Drift("tokens", 0.4, 10, 20, ((0.5, 0.1), (0.5, 0.9))), Drift("score", 0.01, 0.3, 0.3, ((1.0, 1.0),))]
    evil = "<script>alert(1)</script> | [x](javascript:1) @air"
    page = Page(
        CONFIG, "models:/m/2", "macro f1 0.70", index, found, [[evil]], drift, 3200, ["a row 1: <b>"], "Made up."
    )
    text, short = render(page), markdown(page, "/pages/x.html")
    assert text.index("1 alert:") < text.index("<svg") and text.count("<svg") == 3
    assert "<script" not in text and "<b>" not in text.partition("left out")[2]
    assert "<script" not in short and "\\[x\\](javascript" in short
    assert text.count('class="surge"') >= 2 and "Drifted: length in tokens: median 20" in text
    assert set(MEASURES) > {"tokens"} and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    calm = built(scored(surge=None))
    assert "No topic" in render(Page(CONFIG, "m", "", calm, [], [], None, 10))


def test_settings_are_refused_by_name():
    with pytest.raises(ValueError, match="name a column of its own for each"):
        MonitorConfig(time_field="text")
