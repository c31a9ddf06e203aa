"""The inbox of a monitor: its files, and their posts, each file read once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd

from gpt2.artifact import Key, Store
from gpt2.monitor import MonitorConfig
from gpt2.posts import COLUMNS, read, written_by
from gpt2.readers import UnreadableFile
from gpt2.sources import expand, source_id

READING = ("gpt2.posts", "gpt2.tables")
"""The code that the posts of a file depend on."""
Report = Callable[[str], None]
"""What takes lines for the log."""


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


def present() -> pd.Timestamp:
    """Now."""
    return pd.Timestamp(time.time(), unit="s", tz="UTC")
