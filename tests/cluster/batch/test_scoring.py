"""Each post is scored once by a version, whatever has come before and whatever is damaged."""

import json
from pathlib import Path

import pandas as pd
import pytest

from cluster.batch import scoring
from cluster.registry.resolve import resolve_model
from gpt2.monitoring import posts as monitoring_posts
from gpt2.monitoring import scored
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.history import EMPTY, to_score
from gpt2.monitoring.index import ALL, aggregate
from gpt2.store.artifact import Key, Store
from tests.cluster.small import model_folder

DAY = pd.Timedelta(days=1)
NEVER = pd.Timestamp("2261-01-01", tz="UTC")


class Monitor:
    """A folder of posts, a store, two models."""

    def __init__(self, folder: Path):
        self.inbox, self.store = folder / "inbox", Store(folder / "store")
        self.inbox.mkdir()
        self.models = [model_folder(folder / f"{seed}", seed=seed) for seed in (0, 1)]
        self.config = MonitorConfig(sources=[str(self.inbox)], time_field="time", batch_posts=4, window="day")

    def arrive(self, name: str, numbers: range) -> None:
        rows = [{"text": f"@crew post {n}", "time": f"2026-03-{1 + n % 9:02d}T{n % 24:02d}:00:00Z"} for n in numbers]
        (self.inbox / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, model: int = 0) -> tuple[int, int]:
        """(posts scored, of them new)."""
        which = resolve_model(str(self.models[model]))
        arrived, *_ = monitoring_posts.read_files(self.store, self.config, print)
        posts, new = to_score(arrived, self.made(), EMPTY, which.identity, which.address, self.config)
        scoring.score(self.store, posts, self.config, which, None, print)
        return len(posts), new

    def made(self):
        return scored.batches(self.store, self.config)

    def table(self, model: int = 0) -> pd.DataFrame:
        columns = ["time", "topics", "label", "confidence", "version"]
        return scored.scored(self.made(), resolve_model(str(self.models[model])).identity, columns)


@pytest.fixture
def monitor(tmp_path):
    return Monitor(tmp_path)


def test_each_post_once(monitor):
    assert monitor.run() == (0, 0)  # an empty folder is no error
    monitor.arrive("a.jsonl", range(10))
    assert monitor.run() == (10, 10) and len(monitor.made()) == 3
    assert monitor.run() == (0, 0)
    monitor.arrive("a.jsonl", range(13))  # has grown
    monitor.arrive("copy.jsonl", range(5))
    assert monitor.run() == (3, 3)
    # A batch that is cut, as by a disk, is none: its posts are scored again, and no other.
    victim = monitor.made()[0]
    lost = victim.info["posts"]
    (victim.path / "scored.parquet").write_bytes(b"cut")
    assert monitor.run() == (lost, lost)
    table = monitor.table()
    assert len(table) == 13 and table["post"].is_unique
    index = aggregate(table, monitor.config, table["time"].max().floor("D") + DAY, table["version"][0])
    assert index[index["topic"] == ALL]["posts"].sum() == index[index["topic"] == "@crew"]["posts"].sum() == 13


def test_another_setting_below_which_posts_are_undecided_scores_nothing_again_and_rewrites_nothing(monitor):
    def bytes_of() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in monitor.store.root.rglob("*") if path.is_file()}

    monitor.arrive("a.jsonl", range(10))
    monitor.run()
    before, table, decided = bytes_of(), monitor.table(), []
    settings = [0.0, *sorted(table["confidence"])[2::3], 1.0]
    for least in settings:
        monitor.config = monitor.config.model_copy(update={"abstain_below": float(least)})
        assert monitor.run() == (0, 0) and monitor.table().equals(table) and bytes_of() == before
        index = aggregate(table, monitor.config, table["time"].max().floor("D") + DAY, table["version"][0])
        everything = index[index["topic"] == ALL]
        assert everything["posts"].sum() == 10 == (everything["decided"] + everything["undecided"]).sum()
        decided.append(int(everything["decided"].sum()))
    assert decided == [10, 8, 5, 2, 0]
    monitor.arrive("b.jsonl", range(10, 13))
    assert monitor.run() == (3, 3)  # undecided posts are done as all others are


def test_a_batch_of_before_a_column_was_there_is_read_and_new_ones_tell_it(monitor):
    monitor.arrive("a.jsonl", range(5))
    monitor.run()
    table = pd.read_parquet(monitor.made()[0].file("scored.parquet"))
    old = table.drop(columns="cut").assign(post=[f"old {n}" for n in range(len(table))])

    def build(out: Path) -> dict[str, int]:
        old.to_parquet(out / "scored.parquet", index=False)
        return {"posts": len(old)}

    spec = {"model": resolve_model(str(monitor.models[0])).identity, "monitor": "posts"}
    monitor.store.make(Key(scored.kind(monitor.config), spec), build)
    text = {"text": "@crew " + "long " * 500, "time": "2026-03-02T00:00:00Z"}
    (monitor.inbox / "b.jsonl").write_text(json.dumps(text) + "\n")
    assert monitor.run() == (1, 1)
    found = scored.scored(monitor.made(), resolve_model(str(monitor.models[0])).identity, ["text", "cut"]).set_index(
        "post"
    )
    assert len(found) == 5 + len(old) + 1 and found["cut"].isna().sum() == len(old)
    assert found["text"][found["cut"].eq(True)].tolist() == [text["text"].strip()]


def test_copies_of_files_that_changed_or_went_are_removed_and_nothing_else(monitor):
    """Runs of one monitor come one after another; of another source, or another monitor, they stay."""
    others = monitor.inbox.parent / "others"
    others.mkdir()
    mine, elsewhere = monitor.config, monitor.config.model_copy(update={"sources": [str(others)]})
    another = monitor.config.model_copy(update={"name": "another"})
    monitor.arrive("../others/a.jsonl", range(20, 22))
    monitor.arrive("a.jsonl", range(3))
    monitor.arrive("b.jsonl", range(30, 32))

    def copies(name: str = "posts") -> list[str]:
        """The file of each and how many posts it had."""
        made = [monitor.store.get(f"posts-{name}", p.name) for p in (monitor.store.root / f"posts-{name}").iterdir()]
        return sorted(f"{m.manifest['spec']['file']} {m.info['posts']}" for m in made)

    for monitor.config in (elsewhere, another, mine):
        monitor.run()
    assert copies() == ["a.jsonl 2", "a.jsonl 3", "b.jsonl 2"]
    for more in range(4, 8):
        monitor.arrive("a.jsonl", range(more))
        monitor.run()
    assert copies() == ["a.jsonl 2", "a.jsonl 7", "b.jsonl 2"]
    (monitor.inbox / "b.jsonl").rename(monitor.inbox.parent / "b.jsonl")
    manifests = (monitor.store.root / "posts-posts").glob("*/manifest.json")
    [left] = [manifest for manifest in manifests if "b.jsonl" in manifest.read_text()]
    left.unlink()  # as a kill between manifest and folder leaves it
    monitor.run()
    assert copies() == ["a.jsonl 2", "a.jsonl 7"]
    assert copies("another") == ["a.jsonl 3", "b.jsonl 2"]
    table = monitor.table()
    assert len(table) == 11 and table["post"].is_unique  # what has been scored stays, of files that are gone too
    (monitor.inbox.parent / "b.jsonl").rename(monitor.inbox / "b.jsonl")
    assert monitor.run() == (0, 0) and copies() == ["a.jsonl 2", "a.jsonl 7", "b.jsonl 2"]
    locks = [p.name for p in (monitor.store.root / ".locks").glob("posts-posts-*")]
    assert len(locks) == len(list((monitor.store.root / "posts-posts").iterdir()))


def test_after_a_promotion_the_new_version_scores_its_history_too(monitor):
    monitor.arrive("a.jsonl", range(10))
    monitor.run()
    monitor.arrive("b.jsonl", range(10, 12))
    assert monitor.run(model=1) == (12, 2)
    assert monitor.run(model=1) == (0, 0)
    table = monitor.table(1)
    assert len(table) == 12 and table["version"].unique().tolist() == [str(monitor.models[1])]


def test_a_post_of_a_time_to_come_is_a_bad_row_until_then(monitor):
    now = pd.Timestamp("2026-03-10T12:00", tz="UTC")
    times = ["2026-03-10T11:00Z", "2026-03-11T11:00Z", "2026-03-11T13:00Z", "2261-01-01T00:00Z"]
    rows = [{"text": f"post {n}", "time": time} for n, time in enumerate(times)]
    (monitor.inbox / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    posts, troubles, _ = monitoring_posts.read_files(monitor.store, monitor.config, print, now)
    assert posts["text"].tolist() == ["post 0", "post 1"]  # clocks and zones may differ by a day
    assert len(troubles) == 2 and "a.jsonl row 3: 'time' is 2026-03-11T13:00:00+00:00, more than a day" in troubles[0]
    assert "row 4: 'time' is 2261-01-01T00:00:00+00:00, more than a day from now: mend the time" in troubles[1]
    later, troubles, _ = monitoring_posts.read_files(monitor.store, monitor.config, print, now + DAY)
    assert later["text"].tolist() == ["post 0", "post 1", "post 2"] and len(troubles) == 1
    assert later["post"][:2].tolist() == posts["post"].tolist()


def taken_early(monitor, time: pd.Timestamp = NEVER) -> None:
    """A post that was scored before such times were bad rows."""
    post = pd.DataFrame({"post": ["f" * 32], "time": [time], "topic": [None], "text": ["@crew from afar"]})
    scoring.score(monitor.store, post, monitor.config, resolve_model(str(monitor.models[0])), None, print)


def test_a_post_of_a_time_to_come_that_was_taken_hides_nothing(monitor):
    """Neither the history from the next version of the model, nor the latest posts from the comparison for drift."""
    today = pd.Timestamp.now("UTC").floor("D")
    rows = [{"text": f"@crew now {n}", "time": (today - n * DAY).isoformat()} for n in range(3)]
    (monitor.inbox / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    taken_early(monitor)
    assert monitor.run() == (3, 3)
    assert monitor.run(model=1) == (4, 0)
    assert scored.without_future(monitor.table(1))["time"].max() == today


def test_what_cannot_be_read_is_told_and_the_rest_is_read(monitor):
    monitor.arrive("a.jsonl", range(3))
    (monitor.inbox / "b.parquet").write_bytes(b"PAR1")
    (monitor.inbox / "c.jsonl").write_text('{"text": "x"}\n')
    posts, troubles, _ = monitoring_posts.read_files(monitor.store, monitor.config, print)
    assert len(posts) == 3
    assert len(troubles) == 2 and "b.parquet can't be read" in troubles[0] and "no column 'time'" in troubles[1]
    absent = MonitorConfig(sources=[str(monitor.inbox / "nowhere")])
    with pytest.raises(ValueError, match="nowhere does not exist"):
        monitoring_posts.read_files(monitor.store, absent, print)


def test_a_label_that_the_model_lacks_is_refused(monitor):
    monitor.arrive("a.jsonl", range(3))
    monitor.config = MonitorConfig.model_validate({**monitor.config.model_dump(), "negative": "angry"})
    with pytest.raises(ValueError, match=r"negative='angry': is no label of .*; choose one of negative, positive"):
        monitor.run()
