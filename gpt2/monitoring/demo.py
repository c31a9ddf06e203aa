"""A replay of the sample posts with invented times, since they have none, and one planted surge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from gpt2.data.tables import read_table

DAYS = 60
END = pd.Timestamp("2026-03-01", tz="UTC")
TOPIC = "@jetblue"
SURGE = (55, 56, 57)
"""Days on which the topic's negative share is raised, from 0."""
NOTE = (
    f"A replay of the sample posts. They have no times, so they were shuffled over {DAYS} days (seed 0). One surge is "
    f"planted on {(END - pd.Timedelta(days=DAYS - SURGE[0])):%d %b} and the two days after it: three quarters of the "
    f"posts about {TOPIC} that are not negative were swapped with negative ones of other days. Nothing else was "
    f"changed, so any other alert is a false one."
)


def replay(posts: Path, seed: int = 0) -> pd.DataFrame:
    """Return `text` and `time` (UTC) of the sample posts in a seeded order, with a planted surge.

    The labels choose which posts are moved between days and are then dropped, so the monitor's model scores unseen
    labels.
    """
    table = read_table(posts).dropna(subset=["text", "sentiment"]).drop_duplicates("text")
    table = table.sample(frac=1, random_state=seed).reset_index(drop=True)
    generator = np.random.default_rng(seed)
    table["day"] = np.sort(generator.integers(0, DAYS, len(table)))
    mine = table["text"].str.lower().str.contains(TOPIC, regex=False)
    during = table["day"].isin(SURGE)
    leave = table.index[mine & during & (table["sentiment"] != "negative")]
    come = table.index[mine & ~during & (table["sentiment"] == "negative")]
    count = min(3 * len(leave) // 4, len(come))
    leave, come = generator.permutation(leave)[:count], generator.permutation(come)[:count]
    days = table["day"].to_numpy(copy=True)
    days[leave], days[come] = days[come], days[leave]
    seconds = generator.integers(0, 86400, len(table))
    table["time"] = END - pd.to_timedelta(DAYS - days, unit="D") + pd.to_timedelta(seconds, unit="s")
    return table[["text", "time"]].sort_values("time", kind="stable").reset_index(drop=True)


def write(posts: Path, folder: Path, seed: int = 0) -> Iterator[Path]:
    """Write a .jsonl file per ten days of the replay to `folder`; yield each path in order of time."""
    table = replay(posts, seed)
    folder.mkdir(parents=True, exist_ok=True)
    part = (table["time"] - table["time"].min()).dt.days // 10
    for number, rows in table.groupby(part):
        path = folder / f"posts-{number:02d}.jsonl"
        lines = (json.dumps({"text": r.text, "time": r.time.isoformat()}) for r in rows.itertuples())
        path.write_text("\n".join(lines) + "\n")
        yield path
