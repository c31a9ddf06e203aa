"""Merged batches hold what the small ones held, to the last bit and in the same order, whatever is killed."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gpt2.monitoring import scored
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.scored import compact, keep_latest
from gpt2.store.artifact import MANIFEST, Key, Store, read_manifest, write_atomically

CONFIG = MonitorConfig(compact_above=1, window="day")
COLUMNS = ["time", "topic", "text", "topics", "label", "confidence", "version", "surprise"]
TODAY = "2026-03-20"


def batch(store: Store, created: str, model: str, posts: list[int], config: MonitorConfig = CONFIG) -> None:
    """A batch as the monitor makes it, of an earlier day; columns without a value are of another type in the file."""
    spec = {"monitor": config.name, "model": model, "version": model, "negative": "negative"}
    key = Key(scored.kind(config), spec, {"posts": f"{created} {posts}"})

    def build(out: Path) -> dict:
        table = pd.DataFrame({"post": [f"{post:032x}" for post in posts], "text": [f"@a post {p}" for p in posts]})
        table["time"] = pd.to_datetime([f"2026-03-{1 + p % 19:02d}" for p in posts], utc=True).astype(
            "datetime64[us, UTC]"
        )
        table["topic"] = [None if len(posts) % 2 else f"t{p % 3}" for p in posts]
        table["topics"] = [["all posts", *["@a"] * (p % 2)] for p in posts]
        table["label"] = ["negative" if (p + len(model)) % 2 else "positive" for p in posts]
        table["confidence"] = [0.5 + len(f"{created}{model}{p}") / 100 + p / 1000 for p in posts]
        table["version"], table["surprise"] = model, np.nan if model == "b" else 1.5
        table.to_parquet(out / "scored.parquet", index=False)
        return {"posts": len(posts)}

    made = store.make(key, build)
    manifest = (made.path / MANIFEST).read_text().replace(made.manifest["created"], created)
    write_atomically(made.path / MANIFEST, manifest.encode())


def seen(store: Store, model: str = "b", config: MonitorConfig = CONFIG) -> pd.DataFrame:
    table = scored.scored(scored.batches(store, config), model, COLUMNS)
    return table.assign(topic=table["topic"].astype(object).where(table["topic"].notna(), None))


def dirs(store: Store, config: MonitorConfig = CONFIG) -> list[Path]:
    return sorted((store.root / scored.kind(config)).glob("*"))


batches = st.lists(
    st.tuples(
        st.sampled_from(["2026-01-30", "2026-01-31", "2026-02-01", "2026-03-19", "2026-03-20"]),
        st.integers(0, 2),
        st.sampled_from("abc"),
        st.lists(st.integers(0, 12), min_size=1, max_size=4, unique=True),
    ),
    max_size=12,
)


runs_of_a_monitor = st.lists(batches, min_size=1, max_size=3), st.sampled_from("abcd"), st.integers(1, 4)


@examples(deadline=None, max_examples=2)
@given(*runs_of_a_monitor)
def test_readers_see_what_they_would_see_of_the_small_ones(runs, model, above):
    beside_small_ones(runs, model, above)


@pytest.mark.slow
@examples(deadline=None, max_examples=100)
@given(*runs_of_a_monitor)
def test_readers_see_what_they_would_see_of_the_small_ones_in_many_cases(runs, model, above):
    beside_small_ones(runs, model, above)


def beside_small_ones(runs, model, above):
    """In several runs, by several versions, the same posts again: beside a store that is never merged."""
    config, number = CONFIG.model_copy(update={"compact_above": above}), 0
    with tempfile.TemporaryDirectory() as folder:
        store, plain = Store(f"{folder}/merged"), Store(f"{folder}/plain")
        for run in runs:
            for day, second, of, posts in run:
                number += 1
                for where in (store, plain):
                    batch(where, f"{day}T{number // 60:02d}:{number % 60:02d}:0{second}Z", of, posts, config)
            compact(store, config, print, TODAY)
            made, reference = (scored.batches(where, config) for where in (store, plain))
            pd.testing.assert_frame_equal(seen(store, model, config), seen(plain, model, config))
            assert scored.contents(made) == scored.contents(reference)
            assert {b.path for b in made} == set(dirs(store, config))
            closed = [b for b in made if "batches" not in b.info and b.manifest["created"] < TODAY]
            groups = {(b.manifest["created"][:7], b.manifest["spec"]["model"]) for b in closed}
            assert len(closed) <= above or len(groups) == len(closed)


@pytest.fixture(scope="module")
def month(tmp_path_factory):
    """A store with a merged file, small batches of the same month and of today, and what readers see of it."""
    store = Store(tmp_path_factory.mktemp("month") / "store")
    for day in range(1, 5):
        batch(store, f"2026-03-{day:02d}T10:00:00Z", "b", [day, day + 1, day + 2])
    batch(store, "2026-03-02T11:00:00Z", "a", [2, 3])
    compact(store, CONFIG, print, TODAY)
    assert len(dirs(store)) == 2
    for day in range(5, 9):
        batch(store, f"2026-03-{day:02d}T10:00:00Z", "b", [day, day + 1, day + 2])
    batch(store, "2026-03-05T11:00:00Z", "a", [5, 6])
    batch(store, "2026-03-06T11:00:00Z", "a", [6, 7])
    batch(store, f"{TODAY}T00:00:00Z", "b", [11, 12])
    return store.root, seen(store), seen(store, "a")


class Killed(BaseException):
    """No `except Exception` sees it."""


CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


class Killer:
    """Ends the program before the n-th change of a file under a folder."""

    def __init__(self) -> None:
        self.under, self.left = "", 0
        self.end = lambda: None

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.under or event not in CHANGES or not str(arguments[0]).startswith(self.under):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        self.left -= 1
        if self.left == 0:
            self.end()


def die() -> None:
    raise Killed


@pytest.fixture(scope="module")
def killer():
    hook = Killer()
    hook.end = die
    sys.addaudithook(hook)  # stays for ever, but does nothing where `under` is empty
    return hook


def check(root: Path, month) -> None:
    for model, expected in zip("ba", month[1:], strict=True):
        pd.testing.assert_frame_equal(seen(Store(root), model), expected)


def finish(root: Path, month) -> None:
    """What is left to do, done by the next run: two merged files and the batch of today, and nothing else."""
    compact(Store(root), CONFIG, print, TODAY)
    check(root, month)
    assert len(dirs(Store(root))) == 3 and not list((root / ".partial").iterdir())
    whole = dirs(Store(root))
    compact(Store(root), CONFIG, print, TODAY)
    assert dirs(Store(root)) == whole


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_any_change_of_a_file_no_row_is_lost_or_doubled(month, tmp_path, killer, every):
    for number in range(every // 2 + 1, 1000, every):
        root = tmp_path / str(number)
        shutil.copytree(month[0], root)
        killer.under, killer.left = str(root), number
        try:
            compact(Store(root), CONFIG, print, TODAY)
        except Killed:
            killer.under = ""
            check(root, month)
            finish(root, month)
            shutil.rmtree(root)
            continue
        finally:
            killer.under = ""
        break
    finish(root, month)
    assert 30 < number < 1000


CHILD = """
import os, sys
from gpt2.monitoring.scored import compact
from gpt2.store.artifact import Store
from tests.cluster.test_compaction import CONFIG, TODAY, Killer
hook = Killer()
hook.end = lambda: os._exit(9)
hook.under, hook.left = sys.argv[1], int(sys.argv[2])
sys.addaudithook(hook)
compact(Store(sys.argv[1]), CONFIG, print, TODAY)
"""


@pytest.mark.slow
def test_a_process_that_is_gone_leaves_the_same(month, tmp_path):
    """Without Python's own cleaning up on the way out."""
    code = 9
    for number in range(1, 1000, 4):
        root = tmp_path / str(number)
        shutil.copytree(month[0], root)
        code = subprocess.run([sys.executable, "-c", CHILD, str(root), str(number)], check=False).returncode
        assert code in (0, 9)
        check(root, month)
        finish(root, month)
        if code == 0:
            break
    assert code == 0 and number > 30


def test_few_batches_those_of_today_and_damaged_ones_stay_as_they_are(month, tmp_path):
    root = tmp_path / "store"
    shutil.copytree(month[0], root)
    before = dirs(Store(root))
    compact(Store(root), CONFIG.model_copy(update={"compact_above": 7}), print, TODAY)
    compact(Store(root), CONFIG, print, "2026-03-05")
    assert dirs(Store(root)) == before
    [victim] = [p for p in before if read_manifest(p)["created"].startswith("2026-03-08")]
    content = (victim / "scored.parquet").read_bytes()
    (victim / "scored.parquet").write_bytes(content[:-9] + b"?" + content[-8:])
    said: list[str] = []
    compact(Store(root), CONFIG, said.append, TODAY)
    assert any("left as it is: " in line and str(victim) in line for line in said) and victim.exists()
    (victim / "scored.parquet").write_bytes(content)
    check(root, month)


def test_small_ones_are_kept_while_the_merged_one_is_damaged(month, tmp_path, killer):
    for number in range(1, 1000):  # until it is killed when a merged one is there, and its parts too
        root = tmp_path / str(number)
        shutil.copytree(month[0], root)
        killer.under, killer.left = str(root), number
        with pytest.raises(Killed):
            compact(Store(root), CONFIG, print, TODAY)
        killer.under = ""
        live = scored.batches(Store(root), CONFIG)
        if len(live) < len(dirs(Store(root))):
            break
    folder = Store(root).root / scored.kind(CONFIG)
    held = [(batch, [folder / id for id, *_ in scored.parts(batch) if id != batch.id]) for batch in live]
    [(merged, small)] = [(batch, paths) for batch, paths in held if any(p.exists() for p in paths)]
    content = merged.file("scored.parquet").read_bytes()
    merged.file("scored.parquet").write_bytes(content[:-9] + b"?" + content[-8:])
    said: list[str] = []
    compact(Store(root), CONFIG, said.append, TODAY)
    assert any("merged batches are kept: " in line for line in said)
    assert set(small) <= set(dirs(Store(root)))
    shutil.rmtree(merged.path)  # as it is told
    check(root, month)
    finish(root, month)


def test_of_indexes_the_latest_stays_and_those_of_the_last_day(tmp_path):
    store, made = Store(tmp_path), {}

    def index(name: str, hour: int, created: str, **settings) -> None:
        spec = {"name": "posts", "window": "hour", **settings, "until": f"2026-03-20T{hour:02d}:00:00+00:00"}
        found = store.make(Key("index-posts", spec, {"batches": name}), lambda out: {})
        manifest = (found.path / MANIFEST).read_text().replace(found.manifest["created"], created)
        write_atomically(found.path / MANIFEST, manifest.encode())
        made[name] = store.get("index-posts", found.id)

    index("old", 1, "2026-03-18T01:00:00Z")
    index("old by day", 1, "2026-03-18T02:00:00Z", window="day")
    index("of a week ago", 2, "2026-03-13T02:00:00Z")
    index("of the last day", 3, "2026-03-19T12:00:00Z")
    index("latest", 4, "2026-03-20T11:00:00Z")
    index("killed", 5, "2026-03-18T03:00:00Z")
    (made["killed"].path / MANIFEST).unlink()
    (store.root / "index-others").mkdir()
    keep_latest(store, made["latest"], "2026-03-19T11:00:00Z")
    there = {name for name, artifact in made.items() if artifact.path.exists()}
    assert there == {"old by day", "of the last day", "latest"}
    keep_latest(store, made["old by day"], "2026-03-21T00:00:00Z")
    assert made["latest"].path.exists() and made["of the last day"].path.exists()
    index("again", 1, "2026-03-18T01:00:00Z")  # found, though the clock went back: the latest is never removed
    keep_latest(store, made["again"], "2026-03-19T11:00:00Z")
    assert made["again"].path.exists()
