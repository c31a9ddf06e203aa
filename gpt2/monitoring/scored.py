"""The scored batches of a monitor: current ones, their contents, and merging by month.

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

from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.posts import AHEAD, Report, present
from gpt2.store.artifact import Artifact, DamagedArtifact, Key, Store, digest

SCORED = "scored.parquet"
BATCHES = "batches"
"""Key in the info of a merged batch: the parts that it holds."""


def kind(config: MonitorConfig) -> str:
    """Return the kind of the artifacts of this monitor's scored batches."""
    return f"scored-{config.name}"


def batches(store: Store, config: MonitorConfig) -> list[Artifact]:
    """Return the complete batches of this monitor, oldest first, without those held by a merged batch."""
    return current(all_batches(store, config))


def all_batches(store: Store, config: MonitorConfig) -> list[Artifact]:
    """Return all complete batches, oldest first, including those held by a merged batch."""
    complete = [batch for id in store.ids(kind(config)) if (batch := store.get(kind(config), id))]
    return sorted(complete, key=lambda batch: (batch.manifest["created"], batch.id))


def parts(batch: Artifact) -> list[tuple[str, str, int]]:
    """Return (id, creation time, number of posts) of each batch in a merged one, in row order; else of the batch."""
    own = [(batch.id, batch.manifest["created"], batch.info["posts"])]
    return [(id, created, posts) for id, created, posts in batch.info.get(BATCHES, own)]


def current(made: Sequence[Artifact]) -> list[Artifact]:
    """Return the batches that no other batch holds."""
    held: set[str] = set()
    kept = set()
    for batch in sorted(made, key=lambda batch: -len(parts(batch))):
        mine = {id for id, *_ in parts(batch)}
        if not mine <= held:
            kept.add(batch.id)
            held |= mine
    return [batch for batch in made if batch.id in kept]


def contents(made: Sequence[Artifact]) -> str:
    """Return a hash of the batches' contents, equal before and after merging."""
    return digest(sorted(id for batch in made for id, *_ in parts(batch)))


def scored(made: Sequence[Artifact], identity: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return columns of all scored posts, each once: as scored by the model `identity`, or else by the last model."""
    wanted = ["post", *columns]
    if not made:
        return pd.DataFrame(columns=wanted)
    # A column missing in an older batch is empty.
    tables = [pq.ParquetFile(batch.file(SCORED)).read(wanted).to_pandas().reindex(columns=wanted) for batch in made]
    rows = [(batch.manifest["spec"]["model"] == identity, *part) for batch in made for part in parts(batch)]
    order = {row: place for place, row in enumerate(sorted((mine, created, id) for mine, id, created, _ in rows))}
    places = np.repeat([order[mine, created, id] for mine, id, created, _ in rows], [posts for *_, posts in rows])
    table = pd.concat(tables).iloc[np.argsort(places, kind="stable")]
    return table.drop_duplicates("post", keep="last").reset_index(drop=True)


def without_future(posts: pd.DataFrame) -> pd.DataFrame:
    """Return the scored posts whose time has come; earlier versions also accepted posts of a future time."""
    return posts[posts["time"] < present().floor("h") + AHEAD]


def usual_undecided(config: MonitorConfig, known: Artifact) -> float:
    """Return the share of the reference's texts whose confidence is below `abstain_below`."""
    confidence = pd.read_parquet(known.file("reference.parquet"), columns=["confidence"])["confidence"]
    return float((confidence < config.abstain_below).mean())


def examples_of(
    made: Sequence[Artifact], identity: str, wanted: pd.DataFrame, count: int, least: float = 0.0
) -> Iterator[list[str]]:
    """Yield, for each row (topic, start, end) of `wanted`, the `count` texts of its most negative posts.

    Near-equal texts appear once. Posts need a confidence of at least `least`.
    """
    table = scored(made, identity, ["time", "topics", "text", "score", "confidence"])
    table = table[table["confidence"] >= least]
    for row in wanted.itertuples():
        inside = table[(table["time"] >= row.start) & (table["time"] < row.end)]
        inside = inside[[row.topic in topics for topics in inside["topics"]]].nlargest(20 * count, "score")
        texts = inside.assign(like=inside["text"].str.lower().str.slice(0, 40)).drop_duplicates("like")["text"]
        yield texts.head(count).tolist()


MONTH = "month"
"""Key in the spec of a merged batch: its month."""
REPLACED = "replaced"
"""Key in the info of a merged batch: ids of earlier merged batches whose parts it holds."""
MERGING = "_merging"
"""Marker file in the folder of an unfinished merge; it names the monitor's kind."""


def compact(store: Store, config: MonitorConfig, say: Report, today: str | None = None) -> None:
    """Merge the batches of days before `today` (UTC, as 2026-03-31) if there are more than `compact_above`.

    The merged batches are then removed. The scored posts and their scores do not change.
    """
    today = today or time.strftime("%Y-%m-%d", time.gmtime())
    live = current(all_batches(store, config))
    small = [batch for batch in live if BATCHES not in batch.info and batch.manifest["created"] < today]
    if len(small) > config.compact_above:
        groups: dict[str, list[Artifact]] = defaultdict(list)
        for batch in [*small, *(batch for batch in live if BATCHES in batch.info)]:
            groups[digest(group(batch))].append(batch)
        for same in groups.values():
            if len(same) > 1 and (merged := merge(store, same, say)):
                held, posts = len(merged.info[BATCHES]), merged.info["posts"]
                say(f"{held:,} scored batches of {group(merged)[MONTH]} are one file now: {posts:,} posts")
    clean(store, config, say)


def keep_latest(store: Store, latest: Artifact, since: str) -> None:
    """Remove this monitor's earlier indexes of the same settings: the latest one counts all their posts.

    Indexes made after `since` (UTC, as 2026-03-31T00:00:00Z) are kept, since someone may be reading them.
    """
    for id in store.ids(latest.kind):
        made = store.get(latest.kind, id)
        if made is None or (
            made.id != latest.id and settings(made) == settings(latest) and made.manifest["created"] < since
        ):
            store.remove(latest.kind, id)


def settings(made: Artifact) -> dict[str, Any]:
    """Return the settings of an index, without the time that it reaches."""
    return {name: value for name, value in made.manifest["spec"].items() if name != "until"}


def group(batch: Artifact) -> dict[str, Any]:
    """Return the properties that batches of one merged file share: month and spec."""
    return {MONTH: batch.manifest["created"][:7], **batch.manifest["spec"]}


def merge(store: Store, batches: Sequence[Artifact], say: Report) -> Artifact | None:
    """Return one batch with the rows of these, in order of creation; None if fewer than two are undamaged.

    Damaged batches are left as they are.
    """
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
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group).replace_schema_metadata(None)
                    writer.write_table(pa.concat_tables([schema.empty_table(), table], promote_options="default"))
        merged = [batch for batch in whole if BATCHES in batch.info]
        replaced = [id for batch in merged for id in (batch.id, *batch.info[REPLACED])]
        return {"posts": sum(posts for *_, posts in rows), BATCHES: rows, REPLACED: replaced}

    inputs = {BATCHES: digest(sorted(id for id, *_ in rows))}
    return store.make(Key(whole[0].kind, group(whole[0]), inputs, ("gpt2.monitoring.scored",)), build)


def clean(store: Store, config: MonitorConfig, say: Report) -> None:
    """Remove batches that a verified merged batch holds, and the remains of killed merges."""
    live = current(all_batches(store, config))
    present = set(store.ids(kind(config))) - {batch.id for batch in live}
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
