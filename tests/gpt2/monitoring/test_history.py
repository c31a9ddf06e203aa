"""The history as partial sums gives what counting all posts anew gives, whatever has happened in between."""

import random
from hashlib import blake2b

import numpy as np
import pandas as pd
import pytest

from gpt2.data.tables import UTC
from gpt2.monitoring import alerts, history, index, scored
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.history import EMPTY, to_score
from gpt2.monitoring.posts import AHEAD, present
from gpt2.store.artifact import Key, Store

CONFIG = MonitorConfig(name="made-up", window="day", abstain_below=0.6, drift_posts=200, min_posts=5)
START = pd.Timestamp("2026-01-01", tz="UTC")
COUNTED = ["time", "topics", "label", "confidence", "version", "cut"]


class Scored:
    """A store with batches of made-up posts, as `cluster.batch.scoring` writes them."""

    def __init__(self, folder):
        self.store, self.batches = Store(folder), 0

    def score(self, numbers, version: int = 1, first: pd.Timestamp = START, old: bool = False):
        """A batch of posts; what a post is depends on its number, how it is scored on the version, too."""
        draw = np.random.default_rng([version, *numbers])
        confidence = draw.uniform(0.4, 1, len(numbers))
        table = pd.DataFrame(
            {
                "post": [blake2b(str(n).encode(), digest_size=16).hexdigest() for n in numbers],
                "time": pd.Series([first + pd.Timedelta(hours=n % 1500, minutes=n % 7) for n in numbers]).astype(UTC),
                "topic": None, "text": [f"post {n}" for n in numbers],
                "topics": [[index.ALL, *[f"@{k}" for k in range(3) if n % (k + 2) == 0]] for n in numbers],
                "label": draw.choice(["negative", "positive"], len(numbers)), "version": f"models:/m/{version}",
                "cut": draw.random(len(numbers)) < 0.1, "tokens": draw.integers(1, 9, len(numbers)).astype(float),
                "surprise": draw.random(len(numbers)), "score": draw.random(len(numbers)), "confidence": confidence,
            }
        )  # fmt: skip
        if old:
            table = table.drop(columns="cut")
        self.batches += 1
        spec = {"monitor": CONFIG.name, "model": f"m{version}", "version": f"models:/m/{version}"}

        def build(out):
            table.to_parquet(out / scored.SCORED, index=False)
            return {"posts": len(table)}

        return self.store.make(Key(scored.kind(CONFIG), spec, {"posts": str(self.batches)}), build)

    def made(self):
        return scored.batches(self.store, CONFIG)

    def counted(self, version: int = 1, config: MonitorConfig = CONFIG):
        """The history that a run ends with, which goes on from the one that the last run kept."""
        seen, limit = (f"m{version}", f"models:/m/{version}"), present().floor("h") + AHEAD
        past = history.load(self.store, config, *seen, self.made())
        grown, complete = history.grown(past, self.made(), config, *seen, limit)
        if complete:
            history.save(self.store, config, *seen, grown)
        return past, grown

    def check(self, version: int = 1, config: MonitorConfig = CONFIG) -> int:
        """Compare with counting all anew; return how many posts were known before."""
        past, grown = self.counted(version, config)
        made, until = self.made(), START + pd.Timedelta(days=70)
        rows = scored.without_future(scored.scored(made, f"m{version}", COUNTED))
        wanted = index.aggregate(rows, config, until, f"models:/m/{version}")
        pd.testing.assert_frame_equal(index.finished(grown.sums, config, until), wanted, rtol=1e-12)
        mine = [batch for batch in made if batch.manifest["spec"]["model"] == f"m{version}"]
        tail = scored.without_future(scored.scored(mine, f"m{version}", ["time", *alerts.MEASURES]))
        tail = tail.nlargest(config.drift_posts, "time") if mine else tail
        assert sorted(grown.tail["tokens"]) == sorted(tail["tokens"]) and len(grown.ids) == len(rows)
        assert grown.tail["surprise"].sum() == pytest.approx(tail["surprise"].sum())
        everything, near = (
            scored.without_future(scored.scored(batches, f"m{version}", ["time", "label"]))
            .nlargest(config.drift_posts, "time")
            .reset_index(drop=True)
            for batches in (made, history.latest(made, grown, config, present() + AHEAD))
        )
        pd.testing.assert_frame_equal(near, everything)
        assert grown.cut == rows["cut"].eq(True).sum() and grown.latest == rows["time"].max()
        return len(past.ids)


@pytest.fixture
def posts(tmp_path):
    return Scored(tmp_path)


def test_a_run_goes_on_from_the_last_and_counts_what_counting_anew_counts(posts):
    posts.score(range(400))
    assert posts.check() == 0
    posts.score(range(400, 700))
    posts.score(range(700, 720), old=True)  # without a column
    assert posts.check() == 400
    assert posts.check() == 720  # nothing is new
    posts.score(range(600, 800))  # of which some are known: the later row counts
    assert posts.check() == 720 and posts.check() == 800
    lost = posts.made()[0]
    posts.store.remove(lost.kind, lost.id)
    assert posts.check() == 0  # what was counted is not there any more
    (kept,) = (posts.store.root / "history-made-up").iterdir()
    (kept / "ids.npy").write_bytes(b"x" * (kept / "ids.npy").stat().st_size)
    assert posts.check() == 0 and posts.check() > 0  # damaged: counted anew


def test_a_promotion_and_merged_batches_are_counted_as_ever(posts, monkeypatch):
    monkeypatch.setattr(history, "CHUNK", 37)
    for start in range(0, 300, 100):
        posts.score(range(start, start + 100))
    assert posts.check() == 0
    posts.score(range(150, 320), version=2)
    assert posts.check(version=2) == 0 and posts.check(version=2) == 320
    scored.compact(posts.store, CONFIG.model_copy(update={"compact_above": 1}), print, today="9999-01-01")
    assert len(posts.made()) == 2
    assert posts.check(version=2) == 320
    posts.score(range(320, 330), version=2)
    scored.compact(posts.store, CONFIG.model_copy(update={"compact_above": 1}), print, today="9999-01-01")
    posts.score(range(330, 340), version=2)
    assert posts.check(version=2) == 320 and posts.check(version=2) == 340
    other = CONFIG.model_copy(update={"abstain_below": 0.9})
    assert posts.check(version=2, config=other) == 0  # another setting counts all anew


def test_posts_of_a_time_to_come_are_counted_when_it_has(posts, monkeypatch):
    posts.score(range(100))
    assert posts.check() == 0
    soon = pd.Timestamp.now("UTC").floor("h") + AHEAD + pd.Timedelta(minutes=10)
    posts.score([3000], first=soon)
    assert posts.check() == 100 and posts.check() == 100  # the history is not kept before that time
    monkeypatch.setattr(history, "present", lambda: soon)
    monkeypatch.setattr(scored, "present", lambda: soon + pd.Timedelta(hours=2))
    monkeypatch.setitem(globals(), "present", lambda: soon + pd.Timedelta(hours=2))
    assert posts.check() == 100 and posts.check() == 101


def test_any_course_of_events(posts):
    draw = random.Random(0)
    for step in range(25):
        version = 1 + step // 9
        action = draw.choice(["new", "new", "again", "merge", "lose"])
        if action == "merge":
            scored.compact(posts.store, CONFIG.model_copy(update={"compact_above": 1}), print, today="9999-01-01")
        elif action == "lose" and posts.made():
            lost = draw.choice(posts.made())
            posts.store.remove(lost.kind, lost.id)
        else:
            start = 60 * step - (30 if action == "again" else 0)
            posts.score(range(start, start + 60), version=version)
        if posts.made():
            posts.check(version)


def test_what_is_known_is_not_scored_again_and_a_promotion_reaches_as_far_as_the_rule(posts):
    def arriving(numbers):
        names = [blake2b(str(n).encode(), digest_size=16).hexdigest() for n in numbers]
        times = pd.Series([START + pd.Timedelta(hours=n % 1500, minutes=n % 7) for n in numbers]).astype(UTC)
        return pd.DataFrame({"post": names, "time": times, "topic": None, "text": "t"})

    posts.score(range(0, 1500, 3))
    _, past = posts.counted()
    arrived = arriving(range(0, 1500, 2))
    for known in (past, EMPTY):
        new, count = to_score(arrived, posts.made(), known, "m1", "models:/m/1", CONFIG)
        assert len(new) == count == 500 and not set(new["post"]) & set(arriving(range(0, 1500, 3))["post"])
    promoted = history.load(posts.store, CONFIG, "m2", "models:/m/2", posts.made())
    again, count = to_score(arriving([1]), posts.made(), promoted, "m2", "models:/m/2", CONFIG)
    assert count == 1 and 450 < len(again) <= 501  # 58 of the 62 days
    posts.score(range(0, 1500, 3), version=2)
    _, past = posts.counted(version=2)
    assert past.others == history.NEVER
    assert len(to_score(arriving([0]), posts.made(), past, "m2", "models:/m/2", CONFIG)[0]) == 0


def test_batches_near_an_alert_are_found_by_their_times(posts):
    made = [posts.score(range(24 * day, 24 * day + 24)) for day in range(6)]
    _, counted = posts.counted()
    wanted = pd.DataFrame([(START + pd.Timedelta(days=2), START + pd.Timedelta(days=4))], columns=["start", "end"])
    assert {b.id for b in history.near(posts.made(), counted, wanted)} == {made[2].id, made[3].id}
    assert history.near(posts.made(), counted, wanted.iloc[:0]) == []
