"""Posts that arrive, each scored once by a version of the model.

No list of finished work is kept beside the work: the scored batches are artifacts, and the posts in those that are
complete are the ones that are done. A run that is killed leaves complete batches and one that does not count.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from cluster.champion import Used, load
from cluster.tokenization import each
from gpt2 import drift
from gpt2.artifact import Artifact, Key, Store, digest
from gpt2.index import FREQUENCY, STEP, topic_lists
from gpt2.lengths import longer
from gpt2.monitor import MonitorConfig
from gpt2.posts import AHEAD, COLUMNS, read, written_by
from gpt2.readers import UnreadableFile
from gpt2.sources import expand, source_id
from gpt2.surges import HISTORY
from gpt2.tables import UTC

READING = ("gpt2.posts", "gpt2.tables")
"""The code that posts depend on."""
Report = Callable[[str], None]
SMALL = 50_000
"""Posts that are scored in this process; Ray is not started for so few."""
SCORED = "scored.parquet"
BATCHES = "batches"
"""In the info of a merged batch: the parts that it holds."""
REFERENCE = 2000
"""Held-out texts of the training data that posts are compared with."""


def files_of(sources: Sequence[str]) -> list[tuple[str, str]]:
    """(file, the source that it belongs to); `ValueError` where a source does not exist. A folder may be empty."""
    found: list[tuple[str, str]] = []
    for source in sources:
        try:
            found += [(path, source) for path in expand([source])]
        except ValueError:
            fs, path = fsspec.core.url_to_fs(source)
            if not fs.isdir(path) and not any(c in path for c in "*?["):
                raise
    return list({path: (path, source) for path, source in found}.values())


def present() -> pd.Timestamp:
    """Now."""
    return pd.Timestamp(time.time(), unit="s", tz="UTC")


def read_files(
    store: Store, config: MonitorConfig, say: Report, now: pd.Timestamp | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """(the posts of all files, each once; what could not be read). A file that is unchanged is not read again."""
    tables, troubles, current = [], [], set()
    now = present() if now is None else now
    for path, source in files_of(config.sources):
        fields = {k: v for k, v in config.identity().items() if k.endswith("_field")}
        spec = {**fields, "source": source, "file": path.rpartition("/")[2]}

        def build(out: Path, path: str = path, source: str = source) -> dict[str, Any]:
            posts, bad = read(path, source, config)
            posts.to_parquet(out / "posts.parquet", index=False)
            (out / "bad.json").write_text(json.dumps(bad))
            say(f"{path}: {len(posts):,} posts, {len(bad):,} bad rows")
            return {"posts": len(posts), "bad": len(bad)}

        try:
            artifact = store.make(Key(copies(config), spec, {"file": source_id(path)}, READING), build)
        except UnreadableFile as error:
            say(f"left out: {error}")
            troubles.append(str(error))
            continue
        current.add(artifact.id)
        posts, early = written_by(pd.read_parquet(artifact.file("posts.parquet")), now, config)
        if early:
            say(f"{path}: {len(early):,} posts are left out: their time is more than a day from now")
        tables.append(posts[list(COLUMNS)])
        bad = json.loads(artifact.file("bad.json").read_text())
        troubles += [f"{path} row {number}: {wrong}" for number, wrong in sorted([*map(tuple, bad), *early])]
    forget(store, config, current)
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS)), troubles
    return pd.concat(tables).drop_duplicates("post").reset_index(drop=True), troubles


def copies(config: MonitorConfig) -> str:
    """The kind of what this monitor has read of its files: one of its runs at a time has to do with them."""
    return f"posts-{config.name}"


def forget(store: Store, config: MonitorConfig, current: set[str]) -> None:
    """Remove what was read of files of these sources that have changed or gone since: only `current` is read again. The
    files themselves, and what was scored, stay."""
    folder = store.root / copies(config)
    for id in sorted({path.name for path in folder.glob("*")} - current):
        earlier = store.get(copies(config), id)
        if earlier is None or earlier.manifest["spec"]["source"] in config.sources:
            store.remove(copies(config), id)


def kind(config: MonitorConfig) -> str:
    """Of the batches of this monitor."""
    return f"scored-{config.name}"


def batches(store: Store, config: MonitorConfig) -> list[Artifact]:
    """The complete batches of this monitor, oldest first."""
    return current(all_batches(store, config))


def all_batches(store: Store, config: MonitorConfig) -> list[Artifact]:
    """Also those that are held by merged ones (`cluster.compaction`) and not yet removed."""
    folder = store.root / kind(config)
    ids = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    found = [batch for id in ids if (batch := store.get(kind(config), id))]
    return sorted(found, key=lambda batch: (batch.manifest["created"], batch.id))


def parts(batch: Artifact) -> list[tuple[str, str, int]]:
    """(id, when made, posts) of the batches that a merged one holds, as its rows are; of another, its own."""
    own = [(batch.id, batch.manifest["created"], batch.info["posts"])]
    return [(id, created, posts) for id, created, posts in batch.info.get(BATCHES, own)]


def current(made: Sequence[Artifact]) -> list[Artifact]:
    """Without those that another one holds."""
    held: set[str] = set()
    found = set()
    for batch in sorted(made, key=lambda batch: -len(parts(batch))):
        mine = {id for id, *_ in parts(batch)}
        if not mine <= held:
            found.add(batch.id)
            held |= mine
    return [batch for batch in made if batch.id in found]


def contents(made: Sequence[Artifact]) -> str:
    """What batches hold, whether merged or not."""
    return digest(sorted(id for batch in made for id, *_ in parts(batch)))


def scored(made: Sequence[Artifact], model: Used, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of all scored posts, each once: as this version of the model scored it, or else the last that did."""
    wanted = ["post", *columns]
    if not made:
        return pd.DataFrame(columns=wanted)
    # A column that an older batch has not is empty.
    tables = [pq.ParquetFile(batch.file(SCORED)).read(wanted).to_pandas().reindex(columns=wanted) for batch in made]
    rows = [(batch.manifest["spec"]["model"] == model.identity, *part) for batch in made for part in parts(batch)]
    order = {row: place for place, row in enumerate(sorted((mine, created, id) for mine, id, created, _ in rows))}
    places = np.repeat([order[mine, created, id] for mine, id, created, _ in rows], [posts for *_, posts in rows])
    table = pd.concat(tables).iloc[np.argsort(places, kind="stable")]
    return table.drop_duplicates("post", keep="last").reset_index(drop=True)


def to_score(
    arrived: pd.DataFrame, made: Sequence[Artifact], model: Used, config: MonitorConfig
) -> tuple[pd.DataFrame, int]:
    """(posts to score, how many of them are new).

    After a promotion also those which the earlier version scored, as far back as the rule's history reaches: the share
    that one version finds is no history for what another finds.
    """
    done = scored(made, model, ["time", "version"])
    new = arrived[~arrived["post"].isin(done["post"])]
    others = done[done["version"] != model.address]
    if others.empty:
        return new, len(new)
    latest = max(done["time"].max(), new["time"].max() if new["time"].notna().any() else done["time"].max())
    latest = min(latest, present())  # a post may have been taken that says it is of a time to come
    horizon = latest.floor(FREQUENCY[config.window]) - (HISTORY[config.window] + 2) * STEP[config.window]
    again = set(others["post"][others["time"] >= horizon])
    if not again:
        return new, len(new)
    texts = scored(made, model, ["time", "topic", "text"])
    return pd.concat([new, texts[texts["post"].isin(again)][list(COLUMNS)]]), len(new)


def score(
    store: Store, posts: pd.DataFrame, config: MonitorConfig, model: Used, reference: Artifact | None, say: Report
) -> None:
    """Score posts, a batch at a time; those that are complete are not done again."""
    calls = []
    shares = str(reference.file("shares.npy")) if reference else None
    for start in range(0, len(posts), config.batch_posts):
        part = posts.iloc[start : start + config.batch_posts].reset_index(drop=True)
        spec = {"monitor": config.name, "model": model.identity, "version": model.address, "negative": config.negative}
        key = Key(
            kind(config),
            spec,
            {"posts": digest(sorted(part["post"]))},
            ("cluster.monitoring", "gpt2.drift", "gpt2.lengths"),
        )
        if store.find(key) is None:
            calls.append((str(store.root), key, part, config, model, shares))
    for done, count in enumerate(each(score_one, calls, here=len(posts) <= SMALL), 1):
        say(f"scored batch {done} of {len(calls)}: {count:,} posts")


def score_one(root: str, key: Key, posts: pd.DataFrame, config: MonitorConfig, model: Used, shares: str | None) -> int:
    """On a worker or here: score one batch."""

    def build(out: Path) -> dict[str, Any]:
        predictor: Any = load(model.address, "sentiment").predictor
        watched = watched_label(predictor, config, model)
        texts = posts["text"].tolist()
        probabilities = predictor.probabilities(texts)
        table = posts.assign(
            time=posts["time"].fillna(pd.Timestamp(int(time.time()), unit="s", tz="UTC")).astype(UTC),
            topics=topic_lists(posts, config),
            label=[predictor.labels[i] for i in probabilities.argmax(1)],
            version=model.address,
            cut=longer(predictor.tokenizer, predictor.read(texts), predictor.module.model.config.n_positions - 1),
        )
        rows = predictor.tokenizer.encode_batch(texts)
        known = np.load(shares, allow_pickle=False) if shares else np.ones(predictor.tokenizer.vocab_size)
        figures = drift.measure(rows, known, probabilities, watched)
        if not shares:
            figures["surprise"] = np.nan
        for i, label in enumerate(predictor.labels):
            table[f"probability_{label}"] = probabilities[:, i]
        pd.concat([table, figures], axis=1).to_parquet(out / SCORED, index=False)
        return {"posts": len(table)}

    return Store(root).make(key, build).info["posts"]


def watched_label(predictor: Any, config: MonitorConfig, model: Used) -> int:
    """The index of the label whose share is watched; `ValueError` lists the model's."""
    if config.negative not in predictor.labels:
        raise ValueError(
            f"negative={config.negative!r} is no label of {model.address}; its labels are {', '.join(predictor.labels)}"
        )
    return predictor.labels.index(config.negative)


def reference(store: Store, config: MonitorConfig, model: Used) -> Artifact | None:
    """What held-out texts of the model's training data are like; None where the data is not in this home."""
    examples = store.get("sentiment-examples", model.examples)
    if examples is None:
        return None

    def build(out: Path) -> dict[str, Any]:
        predictor: Any = load(model.address, "sentiment").predictor
        encode = predictor.tokenizer.encode_batch
        train = pd.read_parquet(examples.file("train.parquet"))["text"].tolist()
        test = pd.read_parquet(examples.file("test.parquet"))["text"]
        texts = test.sample(min(REFERENCE, len(test)), random_state=0).tolist()
        shares = drift.token_shares(encode(train), predictor.tokenizer.vocab_size)
        np.save(out / "shares.npy", shares)
        watched = watched_label(predictor, config, model)
        table = drift.measure(encode(texts), shares, predictor.probabilities(texts), watched)
        table.to_parquet(out / "reference.parquet", index=False)
        return {"texts": len(texts)}

    spec = {"negative": config.negative, "texts": REFERENCE}
    code = ("cluster.monitoring", "gpt2.drift")
    return store.make(Key("drift-reference", spec, {"model": model.identity, "examples": examples.id}, code), build)


def latest_drift(made: Sequence[Artifact], config: MonitorConfig, model: Used, known: Artifact) -> list[drift.Drift]:
    """The latest posts beside the reference."""
    mine = [batch for batch in made if batch.manifest["spec"]["model"] == model.identity]
    table = so_far(scored(mine, model, ["time", *drift.MEASURES])).nlargest(config.drift_posts, "time")
    return drift.compare(pd.read_parquet(known.file("reference.parquet")), table)


def so_far(posts: pd.DataFrame) -> pd.DataFrame:
    """Scored posts without those of a time to come, which earlier versions took: they wait until it has come."""
    return posts[posts["time"] < present().floor("h") + AHEAD]


def usual_undecided(config: MonitorConfig, known: Artifact) -> float:
    """The share of the reference's texts of which the model is not sure enough."""
    confidence = pd.read_parquet(known.file("reference.parquet"), columns=["confidence"])["confidence"]
    return float((confidence < config.abstain_below).mean())


def examples_of(
    made: Sequence[Artifact], model: Used, wanted: pd.DataFrame, count: int, least: float = 0.0
) -> Iterator[list[str]]:
    """For each row (topic, start, end): the texts of its most negative posts, near-equal ones once; of `least`
    confidence."""
    table = scored(made, model, ["time", "topics", "text", "score", "confidence"])
    table = table[table["confidence"] >= least]
    for row in wanted.itertuples():
        inside = table[(table["time"] >= row.start) & (table["time"] < row.end)]
        inside = inside[[row.topic in topics for topics in inside["topics"]]].nlargest(20 * count, "score")
        texts = inside.assign(like=inside["text"].str.lower().str.slice(0, 40)).drop_duplicates("like")["text"]
        yield texts.head(count).tolist()
