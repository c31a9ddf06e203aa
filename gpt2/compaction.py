"""Scored batches of past days become one file for each month and version of the model.

A merged batch is an artifact like any other, and names those that it holds: readers leave these out from the moment
that it is complete (`gpt2.scored.current`), and only then are they removed. A kill leaves the old ones, or both.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpt2.artifact import Artifact, DamagedArtifact, Key, Store, digest
from gpt2.inbox import Report
from gpt2.monitor import MonitorConfig
from gpt2.scored import BATCHES, SCORED, all_batches, current, kind, parts

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
    return store.make(Key(whole[0].kind, group(whole[0]), inputs, ("gpt2.compaction",)), build)


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
