"""Score posts with a model on the cluster's workers, and make the reference for measuring drift.

`gpt2.monitoring.scored` knows which posts are scored already.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cluster.batch.tokenization import each
from cluster.registry.resolve import ResolvedModel, load
from gpt2.data.tables import UTC
from gpt2.evaluation.unit_results import longer
from gpt2.monitoring import alerts
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.index import topic_lists
from gpt2.monitoring.posts import Report
from gpt2.monitoring.scored import SCORED, kind
from gpt2.store.artifact import Artifact, Key, Store, digest

SMALL = 50_000
"""Most posts that are scored in this process, without starting Ray."""
REFERENCE = 2000
"""Most held-out texts of the training data that posts are compared with."""
SCORING = ("cluster.batch.scoring", "gpt2.evaluation.unit_results", "gpt2.monitoring.alerts")
"""The code that a scored batch depends on; `flows.stage_code` says why no other."""


def score(
    store: Store,
    posts: pd.DataFrame,
    config: MonitorConfig,
    model: ResolvedModel,
    reference: Artifact | None,
    say: Report,
) -> None:
    """Score posts in batches; batches that are complete are not scored again."""
    calls = []
    shares = store.name(reference.file("shares.npy")) if reference else None
    for start in range(0, len(posts), config.batch_posts):
        part = posts.iloc[start : start + config.batch_posts].reset_index(drop=True)
        spec = {"monitor": config.name, "model": model.identity, "version": model.address, "negative": config.negative}
        key = Key(
            kind(config),
            spec,
            {"posts": digest(sorted(part["post"]))},
            SCORING,
        )
        if store.find(key) is None:
            calls.append((store, key, part, config, model, shares))
    for done, count in enumerate(each(score_one, calls, here=len(posts) <= SMALL), 1):
        say(f"scored batch {done} of {len(calls)}: {count:,} posts")


def score_one(
    store: Store, key: Key, posts: pd.DataFrame, config: MonitorConfig, model: ResolvedModel, shares: str | None
) -> int:
    """Score one batch, on a worker or in this process; return the number of posts."""

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
        known = np.load(store.locate(shares), allow_pickle=False) if shares else np.ones(predictor.tokenizer.vocab_size)
        figures = alerts.measure(rows, known, probabilities, watched)
        if not shares:
            figures["surprise"] = np.nan
        for i, label in enumerate(predictor.labels):
            table[f"probability_{label}"] = probabilities[:, i]
        pd.concat([table, figures], axis=1).to_parquet(out / SCORED, index=False)
        return {"posts": len(table)}

    return store.make(key, build).info["posts"]


def watched_label(predictor: Any, config: MonitorConfig, model: ResolvedModel) -> int:
    """Return the index of the label whose share is monitored; raises `ValueError` with the model's labels."""
    if config.negative not in predictor.labels:
        raise ValueError(
            f"negative={config.negative!r}: is no label of {model.address}; choose one of {', '.join(predictor.labels)}"
        )
    return predictor.labels.index(config.negative)


def reference(store: Store, config: MonitorConfig, model: ResolvedModel) -> Artifact | None:
    """Return the reference for drift: measures of held-out texts of the model's training data.

    Returns None if that data is not in this home.
    """
    examples = store.get("sentiment-examples", model.examples)
    if examples is None:
        return None

    def build(out: Path) -> dict[str, Any]:
        predictor: Any = load(model.address, "sentiment").predictor
        encode = predictor.tokenizer.encode_batch
        train = pd.read_parquet(examples.file("train.parquet"))["text"].tolist()
        test = pd.read_parquet(examples.file("test.parquet"))["text"]
        texts = test.sample(min(REFERENCE, len(test)), random_state=0).tolist()
        shares = alerts.token_shares(encode(train), predictor.tokenizer.vocab_size)
        np.save(out / "shares.npy", shares)
        watched = watched_label(predictor, config, model)
        table = alerts.measure(encode(texts), shares, predictor.probabilities(texts), watched)
        table.to_parquet(out / "reference.parquet", index=False)
        return {"texts": len(texts)}

    spec = {"negative": config.negative, "texts": REFERENCE}
    return store.make(Key("drift-reference", spec, {"model": model.identity, "examples": examples.id}, SCORING), build)
