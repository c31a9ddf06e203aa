"""The scored batches of a monitor: which are current, what they hold, and which posts are still to score.

No list of finished work is kept beside the work: the scored batches are artifacts, and the posts in those that are
complete are the ones that are done. A run that is killed leaves complete batches and one that does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from gpt2 import drift
from gpt2.artifact import Artifact, Store, digest
from gpt2.inbox import present
from gpt2.index import FREQUENCY, STEP
from gpt2.monitor import MonitorConfig
from gpt2.posts import AHEAD, COLUMNS
from gpt2.surges import HISTORY

SCORED = "scored.parquet"
BATCHES = "batches"
"""In the info of a merged batch: the parts that it holds."""


def kind(config: MonitorConfig) -> str:
    """Return the kind of the artifacts that are this monitor's scored batches."""
    return f"scored-{config.name}"


def batches(store: Store, config: MonitorConfig) -> list[Artifact]:
    """Return the complete batches of this monitor, oldest first, without those that a merged one holds."""
    return current(all_batches(store, config))


def all_batches(store: Store, config: MonitorConfig) -> list[Artifact]:
    """Return all complete batches, oldest first, also those that a merged one holds (`gpt2.compaction`)."""
    folder = store.root / kind(config)
    ids = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    found = [batch for id in ids if (batch := store.get(kind(config), id))]
    return sorted(found, key=lambda batch: (batch.manifest["created"], batch.id))


def parts(batch: Artifact) -> list[tuple[str, str, int]]:
    """(id, when made, posts) of the batches that a merged one holds, as its rows are; of another, its own."""
    own = [(batch.id, batch.manifest["created"], batch.info["posts"])]
    return [(id, created, posts) for id, created, posts in batch.info.get(BATCHES, own)]


def current(made: Sequence[Artifact]) -> list[Artifact]:
    """Return the batches that no other one holds."""
    held: set[str] = set()
    found = set()
    for batch in sorted(made, key=lambda batch: -len(parts(batch))):
        mine = {id for id, *_ in parts(batch)}
        if not mine <= held:
            found.add(batch.id)
            held |= mine
    return [batch for batch in made if batch.id in found]


def contents(made: Sequence[Artifact]) -> str:
    """Return a hash of what batches hold, the same before and after they are merged."""
    return digest(sorted(id for batch in made for id, *_ in parts(batch)))


def scored(made: Sequence[Artifact], identity: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return columns of all scored posts, each once: as the model `identity` scored it, or else the last that did."""
    wanted = ["post", *columns]
    if not made:
        return pd.DataFrame(columns=wanted)
    # A column that an older batch has not is empty.
    tables = [pq.ParquetFile(batch.file(SCORED)).read(wanted).to_pandas().reindex(columns=wanted) for batch in made]
    rows = [(batch.manifest["spec"]["model"] == identity, *part) for batch in made for part in parts(batch)]
    order = {row: place for place, row in enumerate(sorted((mine, created, id) for mine, id, created, _ in rows))}
    places = np.repeat([order[mine, created, id] for mine, id, created, _ in rows], [posts for *_, posts in rows])
    table = pd.concat(tables).iloc[np.argsort(places, kind="stable")]
    return table.drop_duplicates("post", keep="last").reset_index(drop=True)


def to_score(
    arrived: pd.DataFrame, made: Sequence[Artifact], identity: str, address: str, config: MonitorConfig
) -> tuple[pd.DataFrame, int]:
    """Return (posts to score, how many of them are new) for the model of this `identity` and exact `address`.

    After a promotion also those which the earlier version scored, as far back as the rule's history reaches: the share
    that one version finds is no history for what another finds.
    """
    done = scored(made, identity, ["time", "version"])
    new = arrived[~arrived["post"].isin(done["post"])]
    others = done[done["version"] != address]
    if others.empty:
        return new, len(new)
    latest = max(done["time"].max(), new["time"].max() if new["time"].notna().any() else done["time"].max())
    latest = min(latest, present())  # a post may have been taken that says it is of a time to come
    horizon = latest.floor(FREQUENCY[config.window]) - (HISTORY[config.window] + 2) * STEP[config.window]
    again = set(others["post"][others["time"] >= horizon])
    if not again:
        return new, len(new)
    texts = scored(made, identity, ["time", "topic", "text"])
    return pd.concat([new, texts[texts["post"].isin(again)][list(COLUMNS)]]), len(new)


def latest_drift(made: Sequence[Artifact], config: MonitorConfig, identity: str, known: Artifact) -> list[drift.Drift]:
    """Return the drift of the latest posts from the reference `known`, by measure."""
    mine = [batch for batch in made if batch.manifest["spec"]["model"] == identity]
    table = so_far(scored(mine, identity, ["time", *drift.MEASURES])).nlargest(config.drift_posts, "time")
    return drift.compare(pd.read_parquet(known.file("reference.parquet")), table)


def so_far(posts: pd.DataFrame) -> pd.DataFrame:
    """Return the scored posts whose time has come; earlier versions also took posts of a time to come."""
    return posts[posts["time"] < present().floor("h") + AHEAD]


def usual_undecided(config: MonitorConfig, known: Artifact) -> float:
    """Return the share of the reference's texts of which the model is not sure enough."""
    confidence = pd.read_parquet(known.file("reference.parquet"), columns=["confidence"])["confidence"]
    return float((confidence < config.abstain_below).mean())


def examples_of(
    made: Sequence[Artifact], identity: str, wanted: pd.DataFrame, count: int, least: float = 0.0
) -> Iterator[list[str]]:
    """For each row (topic, start, end): the texts of its most negative posts, near-equal ones once; of `least`
    confidence."""
    table = scored(made, identity, ["time", "topics", "text", "score", "confidence"])
    table = table[table["confidence"] >= least]
    for row in wanted.itertuples():
        inside = table[(table["time"] >= row.start) & (table["time"] < row.end)]
        inside = inside[[row.topic in topics for topics in inside["topics"]]].nlargest(20 * count, "score")
        texts = inside.assign(like=inside["text"].str.lower().str.slice(0, 40)).drop_duplicates("like")["text"]
        yield texts.head(count).tolist()
