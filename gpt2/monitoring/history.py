"""What was counted before, as partial sums: a run reads what is new, however long the history is.

It holds the identities of the counted posts, the sums of each topic and window, and the latest posts for drift. It is
an artifact, and names the scored batches that it counted. If one of them is gone, or a new one repeats a post, all is
counted anew from the batches. So it is never more than a shortcut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from gpt2.data.tables import UTC
from gpt2.monitoring import alerts, index
from gpt2.monitoring import posts as monitoring_posts
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.index import FREQUENCY, STEP
from gpt2.monitoring.posts import present
from gpt2.monitoring.scored import SCORED, parts, scored
from gpt2.store.artifact import Artifact, DamagedArtifact, Key, Store, digest

COLUMNS = ["post", "time", "topics", "label", "version", "cut", *alerts.MEASURES]
"""Columns of scored posts that are counted."""
CHUNK = 20_000
"""Scored posts read at a time, which bounds memory."""
ID = "S16"
"""The dtype of a post's identity: 16 bytes."""
NEVER = pd.Timestamp.min.tz_localize("UTC")
CODE = ("gpt2.monitoring.history", "gpt2.monitoring.index", "gpt2.monitoring.scored")


@dataclass(frozen=True)
class History:
    """The sums of the posts that were counted before."""

    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """First and last time (microseconds since 1970) in each counted batch, by its id."""
    files: frozenset[str] = frozenset()
    """Ids of the read copies of files all of whose posts are counted."""
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, ID))
    """(posts,) sorted identities of the counted posts."""
    sums: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=index.SUMS))
    tail: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["time", *alerts.MEASURES]))
    """The latest posts that the model scored, for drift."""
    cut: int = 0
    """Number of posts longer than the model's positions."""
    latest: pd.Timestamp = NEVER
    others: pd.Timestamp = NEVER
    """Latest time of a post that another version scored."""

    def has(self, posts: Sequence[str] | pd.Series) -> np.ndarray:
        """Return (N,) whether each post is counted."""
        return found(self.ids, identities(posts))

    def plus(self, rows: pd.DataFrame, config: MonitorConfig, version: str) -> History:
        """Return the history with more scored posts (`COLUMNS` and `mine`, whether the model scored it)."""
        if rows.empty:
            return self
        new, mine = np.sort(identities(rows["post"])), rows.loc[rows["mine"].to_numpy(bool), list(self.tail)]
        tail = pd.concat([self.tail, mine]) if len(self.tail) else mine
        other = rows["time"][(rows["version"] != version).to_numpy()]
        return replace(
            self,
            ids=np.insert(self.ids, np.searchsorted(self.ids, new), new),
            sums=index.added(self.sums, index.sums(rows, config, version)),
            tail=tail.nlargest(config.drift_posts, "time"),
            cut=self.cut + int(rows["cut"].eq(True).sum()),
            latest=max(self.latest, rows["time"].max()),
            others=max(self.others, other.max() if len(other) else NEVER),
        )


EMPTY = History()


def identities(posts: Sequence[str] | pd.Series) -> np.ndarray:
    """Return (N,) identities of posts as 16 bytes each."""
    return np.frombuffer(bytes.fromhex("".join(posts)), ID)


def found(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return (N,) whether each of the wanted identities is among the sorted `ids`."""
    if not len(ids):
        return np.zeros(len(wanted), bool)
    return ids[np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)] == wanted


def key(config: MonitorConfig, identity: str, address: str, counted: Sequence[str]) -> Key:
    """Return the key of the history of these batches, as the model of this `identity` and exact `address` sees it."""
    names = ("name", "window", "negative", "abstain_below", "drift_posts")
    spec = {name: getattr(config, name) for name in names} | {"model": identity, "version": address}
    return Key(f"history-{config.name}", spec, {"batches": digest(sorted(counted))}, CODE)


def load(store: Store, config: MonitorConfig, identity: str, address: str, made: Sequence[Artifact]) -> History:
    """Return the history that an earlier run kept, if all its batches are still there; else an empty one."""
    there = {id for batch in made for id, *_ in parts(batch)}
    kind, usable = f"history-{config.name}", []
    for id in store.ids(kind):
        kept = store.get(kind, id)
        if kept is None:
            continue
        counted = json.loads(kept.file("parts.json").read_text())
        if counted.keys() <= there and key(config, identity, address, list(counted)).id == kept.id:
            usable.append((len(counted), kept, counted))
    if not usable:
        return EMPTY
    _, kept, counted = max(usable, key=lambda row: row[0])
    try:
        kept.verify()
    except DamagedArtifact:
        store.remove(kept.kind, kept.id)
        return EMPTY
    info = kept.info
    return History(
        {id: (first, last) for id, (first, last) in counted.items()},
        frozenset(json.loads(kept.file("files.json").read_text())),
        np.load(kept.file("ids.npy"), mmap_mode="r", allow_pickle=False),
        pd.read_parquet(kept.file("sums.parquet")),
        pd.read_parquet(kept.file("tail.parquet")),
        info["cut"],
        pd.Timestamp(info["latest"], tz="UTC"),
        pd.Timestamp(info["others"], tz="UTC"),
    )


def save(store: Store, config: MonitorConfig, identity: str, address: str, history: History) -> None:
    """Keep the history for the next run, and remove earlier ones of this monitor."""

    def build(out: Path) -> dict[str, Any]:
        (out / "parts.json").write_text(json.dumps(history.parts))
        (out / "files.json").write_text(json.dumps(sorted(history.files)))
        np.save(out / "ids.npy", history.ids, allow_pickle=False)
        history.sums.to_parquet(out / "sums.parquet", index=False)
        history.tail.to_parquet(out / "tail.parquet", index=False)
        return {"posts": len(history.ids), "cut": history.cut, "latest": history.latest.value,
                "others": history.others.value}  # fmt: skip

    wanted = key(config, identity, address, list(history.parts))
    if (kept := store.find(wanted)) and set(json.loads(kept.file("files.json").read_text())) != history.files:
        store.remove(kept.kind, kept.id)
    kept = store.make(wanted, build)
    for id in sorted(set(store.ids(kept.kind)) - {kept.id}):
        store.remove(kept.kind, id)


def grown(
    past: History, made: Sequence[Artifact], config: MonitorConfig, identity: str, address: str, until: pd.Timestamp
) -> tuple[History, bool]:
    """Return (the history with all scored posts before `until`, whether there are no later ones).

    Each post counts once: as scored by the model, or else by the last one that scored it.
    """
    more = uncounted(made, past, identity)
    ids, ranks = more.ids(), more.ranks()
    if found(past.ids, ids).any():  # scored anew: another row may count now
        return grown(History(files=past.files), made, config, identity, address, until)
    chosen, places, early = last_of_each(ids, ranks), 0, True
    counted = past
    for rows in more.chunks():
        rows = rows[chosen[places : (places := places + len(rows))]]
        early = early and bool((rows["time"] < until).all())
        counted = counted.plus(rows[rows["time"] < until], config, address)
    return replace(counted, parts={**past.parts, **more.spans()}), early


def last_of_each(ids: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return (N,) whether a row is the one of the highest rank, and the last such, of its identity."""
    order = np.lexsort((ranks, ids))
    last = np.ones(len(ids), bool)
    last[:-1] = ids[order][1:] != ids[order][:-1]
    out = np.empty(len(ids), bool)
    out[order] = last
    return out


@dataclass(frozen=True)
class Uncounted:
    """The rows of scored batches that a history does not count yet."""

    batches: Sequence[Artifact]
    counted: Mapping[str, Any]
    identity: str

    def _rows(self, batch: Artifact) -> np.ndarray:
        return np.repeat([id not in self.counted for id, *_ in parts(batch)], [n for *_, n in parts(batch)])

    def _read(self, batch: Artifact, column: str) -> pd.Series:
        return pq.ParquetFile(batch.file(SCORED)).read([column]).column(0).to_pandas()[self._rows(batch)]

    def ids(self) -> np.ndarray:
        """Return (N,) identities of the rows."""
        return np.concatenate([np.empty(0, ID), *(identities(self._read(batch, "post")) for batch in self.batches)])

    def ranks(self) -> np.ndarray:
        """Return (N,) ranks of the rows: the model's are above the others', and later ones above earlier ones."""
        rows = [(self.mine(batch), *part) for batch in self.batches for part in parts(batch)]
        order = {row: i for i, row in enumerate(sorted((mine, created, id) for mine, id, created, _ in rows))}
        kept = [(order[m, created, id], posts) for m, id, created, posts in rows if id not in self.counted]
        return np.repeat(*np.array(kept, dtype=int).reshape(-1, 2).T)

    def mine(self, batch: Artifact) -> bool:
        """Return whether the model scored the batch."""
        return batch.manifest["spec"]["model"] == self.identity

    def chunks(self) -> Iterator[pd.DataFrame]:
        """Yield the rows in order, with `COLUMNS` and `mine`; a column missing in an older batch is empty."""
        for batch in self.batches:
            file, mask, start = pq.ParquetFile(batch.file(SCORED)), self._rows(batch), 0
            there = [name for name in COLUMNS if name in file.schema_arrow.names]
            for some in file.iter_batches(CHUNK, columns=there):
                kept = mask[start : (start := start + some.num_rows)]
                yield some.to_pandas()[kept].reindex(columns=COLUMNS).assign(mine=self.mine(batch))

    def spans(self) -> dict[str, tuple[int, int]]:
        """Return (first, last) time (microseconds since 1970) of each batch."""
        out = {}
        for batch in self.batches:
            times = (
                pq.ParquetFile(batch.file(SCORED))
                .read(["time"])
                .column(0)
                .to_pandas()
                .astype(UTC)
                .astype("int64")
                .to_numpy()
            )
            ends = np.cumsum([n for *_, n in parts(batch)])
            for (id, _, n), end in zip(parts(batch), ends, strict=True):
                if id not in self.counted:
                    mine = times[end - n : end] if n else np.zeros(1, int)
                    out[id] = (int(mine.min()), int(mine.max()))
        return out


def uncounted(made: Sequence[Artifact], past: History, identity: str) -> Uncounted:
    """Return the rows that `past` does not count."""
    return Uncounted([b for b in made if any(id not in past.parts for id, *_ in parts(b))], past.parts, identity)


def to_score(
    arrived: pd.DataFrame, made: Sequence[Artifact], past: History, identity: str, address: str, config: MonitorConfig
) -> tuple[pd.DataFrame, int]:
    """Return (posts to score, number of new ones among them) for the model of this `identity` and exact `address`.

    After a promotion they include posts scored by the earlier version, as far back as the rule's history reaches:
    shares found by different versions can't be compared.
    """
    done = scored(uncounted(made, past, identity).batches, identity, ["time", "version"])
    new = arrived[~(past.has(arrived["post"]) | arrived["post"].isin(done["post"]).to_numpy(bool))]
    other = max([past.others, *done["time"][done["version"] != address]])
    if other == NEVER:
        return new, len(new)
    latest = max([past.latest, *done["time"].nlargest(1), *new["time"].dropna().nlargest(1)])
    latest = min(latest, present())  # earlier versions also accepted posts of a future time
    horizon = latest.floor(FREQUENCY[config.window]) - (alerts.HISTORY[config.window] + 2) * STEP[config.window]
    if other < horizon:
        return new, len(new)
    texts = scored(made, identity, ["time", "topic", "text", "version"])
    again = (texts["version"] != address) & (texts["time"] >= horizon)
    return pd.concat([new, texts[again][list(monitoring_posts.COLUMNS)]]), len(new)


def near(made: Sequence[Artifact], history: History, wanted: pd.DataFrame) -> list[Artifact]:
    """Return the batches with posts of the times of any row (start, end) of `wanted`."""
    spans = [
        (start.value // 1000, end.value // 1000) for start, end in zip(wanted["start"], wanted["end"], strict=True)
    ]
    within = {id for id, (first, last) in history.parts.items() if any(s <= last and first < e for s, e in spans)}
    return [batch for batch in made if any(id in within for id, *_ in parts(batch))]


def latest(made: Sequence[Artifact], history: History, config: MonitorConfig, until: pd.Timestamp) -> list[Artifact]:
    """Return the batches that hold the latest posts before `until`, at least as many as are compared for drift."""
    since = history.tail["time"].min() if len(history.tail) >= config.drift_posts else NEVER
    found_near = near(made, history, pd.DataFrame({"start": [since], "end": [until]}))
    return found_near or list(made)  # where none is counted, all are of a time to come
