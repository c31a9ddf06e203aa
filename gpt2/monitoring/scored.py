"""The scored batches of a monitor: current ones, their contents, posts still to score, and merging by month.

No list of finished work is kept beside the work: the scored batches are artifacts, and the posts in those that are
complete are done. A run that is killed leaves complete batches and one that does not count.

Batches of past days become one for each month and version of the model. A merged batch is an artifact like any other
and names the batches that it holds. Readers leave these out as soon as it is complete (`current`); only then are they
removed. A kill leaves the old ones, or both.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gpt2.monitoring import alerts
from gpt2.monitoring.alerts import HISTORY
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.index import FREQUENCY, STEP
from gpt2.monitoring.posts import AHEAD, COLUMNS, Report, present
from gpt2.store.artifact import Artifact, DamagedArtifact, Key, Store, digest

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
    """Return all complete batches, oldest first, also those that a merged one holds (`gpt2.monitoring.scored`)."""
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


def latest_drift(made: Sequence[Artifact], config: MonitorConfig, identity: str, known: Artifact) -> list[alerts.Drift]:
    """Return the drift of the latest posts from the reference `known`, by measure."""
    mine = [batch for batch in made if batch.manifest["spec"]["model"] == identity]
    table = so_far(scored(mine, identity, ["time", *alerts.MEASURES])).nlargest(config.drift_posts, "time")
    return alerts.compare(pd.read_parquet(known.file("reference.parquet")), table)


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


MONTH = "month"
"""In the spec of a merged batch."""
REPLACED = "replaced"
"""In its info: earlier merged ones whose parts it holds."""
MERGING = "_merging"
"""A file in the folder of what is being merged: which monitor's."""


def compact(store: Store, config: MonitorConfig, say: Report, today: str | None = None) -> None:
    """Merge the batches of the days before `today` (UTC, as 2026-03-31), once they are more than `compact_above`; then
    remove what is merged. Which posts are scored, and how, stays as it is."""
    today = today or time.strftime("%Y-%m-%d", time.gmtime())
    live = current(all_batches(store, config))
    small = [batch for batch in live if BATCHES not in batch.info and batch.manifest["created"] < today]
    if len(small) > config.compact_above:
        groups: dict[str, list[Artifact]] = defaultdict(list)
        for batch in [*small, *(batch for batch in live if BATCHES in batch.info)]:
            groups[digest(group(batch))].append(batch)
        for found in groups.values():
            if len(found) > 1 and (merged := merge(store, found, say)):
                held, posts = len(merged.info[BATCHES]), merged.info["posts"]
                say(f"{held:,} scored batches of {group(merged)[MONTH]} are one file now: {posts:,} posts")
    clean(store, config, say)


def keep_latest(store: Store, latest: Artifact, since: str) -> None:
    """Remove this monitor's earlier indexes of the same settings, but for those made `since` (UTC, as
    2026-03-31T00:00:00Z), which somebody may be reading: the latest one counts all posts that they count."""
    for path in sorted(latest.path.parent.iterdir()):
        made = store.get(latest.kind, path.name)
        if made is None or (
            made.id != latest.id and settings(made) == settings(latest) and made.manifest["created"] < since
        ):
            store.remove(latest.kind, path.name)


def settings(made: Artifact) -> dict[str, Any]:
    """Of an index, whatever time it reaches."""
    return {name: value for name, value in made.manifest["spec"].items() if name != "until"}


def group(batch: Artifact) -> dict[str, Any]:
    """What batches of one file share."""
    return {MONTH: batch.manifest["created"][:7], **batch.manifest["spec"]}


def merge(store: Store, batches: Sequence[Artifact], say: Report) -> Artifact | None:
    """One batch with the rows of these, in the order in which they were made; those that are damaged stay apart."""
    whole = []
    for batch in batches:
        try:
            batch.verify()
            whole.append(batch)
        except DamagedArtifact as error:
            say(f"left as it is: {error}")
    if len(whole) < 2:
        return None
    rows = [part for batch in whole for part in parts(batch)]

    def build(out: Path) -> dict[str, Any]:
        (out / MERGING).write_text(whole[0].kind)
        files = [pq.ParquetFile(batch.file(SCORED)) for batch in whole]
        schema = pa.unify_schemas([file.schema_arrow.remove_metadata() for file in files], promote_options="default")
        with pq.ParquetWriter(out / SCORED, schema) as writer:
            for file in files:
                table = file.read().replace_schema_metadata(None)
                writer.write_table(pa.concat_tables([schema.empty_table(), table], promote_options="default"))
        merged = [batch for batch in whole if BATCHES in batch.info]
        replaced = [id for batch in merged for id in (batch.id, *batch.info[REPLACED])]
        return {"posts": sum(posts for *_, posts in rows), BATCHES: rows, REPLACED: replaced}

    inputs = {BATCHES: digest(sorted(id for id, *_ in rows))}
    return store.make(Key(whole[0].kind, group(whole[0]), inputs, ("gpt2.monitoring.scored",)), build)


def clean(store: Store, config: MonitorConfig, say: Report) -> None:
    """Remove batches that are held by others whose every byte is right, and what a kill left of such."""
    folder = store.root / kind(config)
    live = current(all_batches(store, config))
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    present -= {batch.id for batch in live}
    for batch in live:
        held = {id for id, *_ in parts(batch)} | set(batch.info.get(REPLACED, []))
        if gone := held & present:
            try:
                batch.verify()
            except DamagedArtifact as error:
                say(f"{len(gone):,} merged batches are kept: {error}")
                continue
            for id in sorted(gone):
                store.remove(batch.kind, id)
    for marker in (store.root / ".partial").glob(f"{kind(config)}-*/{MERGING}"):
        if marker.read_text() == kind(config):
            shutil.rmtree(marker.parent)
