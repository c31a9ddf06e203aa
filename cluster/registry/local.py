"""Reads a registry that is a SQLite file of this machine, without importing MLflow, which takes seconds.

Only a file of the schema that we know is read. In every other case, and where anything is missing or damaged, the
answer is None, and the caller asks MLflow, which also says what is wrong.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlparse

from cluster.home import home, tracking_uri
from gpt2.store.artifact import digest
from gpt2.store.model_files import MODEL, RefusedModel, compare_sizes, read_manifest, sizes, verify

SCHEMA = "dc11669786a5"
"""MLflow's version of the schema that these queries were written for."""
MANIFEST_TAG = "gpt2.manifest"
FOLDER = f"artifacts/{MODEL}"
"""Folder of a version's files among MLflow's artifacts."""
ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[^/@:]+)|/(?P<version>[0-9]+))")
UNUSED_DAYS = 30
SQLITE = "sqlite:///"


class Tagged(Protocol):
    """A version with tags: MLflow's, or ours."""

    @property
    def tags(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    version: int
    created: float
    """Seconds since 1970."""
    place: str
    """The URI of its files."""
    tags: dict[str, str] = field(default_factory=dict)
    aliases: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return the row of `cluster.registry.versions.versions`."""
        verdict = verdict_of(self)
        facts = {"verdict": verdict, "reasons": self.tags.get(f"gpt2.{verdict}", ""), "tags": self.tags}
        names = {"name": self.name, "version": self.version, "aliases": sorted(self.aliases)}
        return {**names, **facts, "created": self.created}


def verdict_of(version: Tagged) -> str:
    """Return the verdict: `promoted`, `refused` or `not judged yet`. A promotion counts more than a refusal."""
    return next((word for word in ("promoted", "refused") if f"gpt2.{word}" in version.tags), "not judged yet")


def versions() -> list[Version] | None:
    """Return the versions of our models, newest first within a name; None if MLflow must be asked."""
    uri = tracking_uri()
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or os.environ.get("MLFLOW_REGISTRY_URI", uri) != uri or not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=20)) as file:
            if file.execute("SELECT version_num FROM alembic_version").fetchall() != [(SCHEMA,)]:
                return None
            file.execute("BEGIN")  # one state of all tables
            found = {
                (name, number): Version(name, number, created / 1000, place or source)
                for name, number, created, place, source in file.execute(
                    "SELECT name, version, creation_time, storage_location, source FROM model_versions "
                    "WHERE workspace = 'default' AND name GLOB 'gpt2-*' AND current_stage IS NOT 'Deleted_Internal' "
                    "ORDER BY name, version DESC"
                )
            }
            for name, number, key, value in file.execute(
                "SELECT name, version, key, value FROM model_version_tags WHERE workspace = 'default'"
            ):
                if (name, number) in found:
                    found[name, number].tags[key] = value
            for name, number, alias in file.execute(
                "SELECT name, version, alias FROM registered_model_aliases WHERE workspace = 'default'"
            ):
                if (name, number) in found:
                    found[name, number].aliases.append(alias)
    except sqlite3.Error:
        return None
    return list(found.values())


def find(address: str) -> Version | None:
    """Return the version at `models:/NAME@ALIAS` or `models:/NAME/VERSION`; None if MLflow must be asked."""
    parts = ADDRESS.fullmatch(address)
    if parts is None:
        return None
    name, alias, number = parts.groups()
    return next(
        (v for v in versions() or () if v.name == name and (alias in v.aliases if alias else str(v.version) == number)),
        None,
    )


def intact(version: Version) -> bool:
    """Return whether the files of a version are in a folder of this machine, with the sizes in its manifest."""
    place = urlparse(version.place)
    stored = Path(unquote(place.path))
    if place.scheme != "file" or place.netloc or (stored / FOLDER).resolve() != stored.resolve() / FOLDER:
        return False
    try:
        compare_sizes(read_manifest(version.tags[MANIFEST_TAG]), sizes(stored / FOLDER))
    except (KeyError, OSError, RefusedModel):
        return False
    return True


def pull(address: str) -> tuple[Path, str] | None:
    """Return what `cluster.registry.download.pull` returns, if the verified copy is there and the version intact.

    Otherwise return None; `download.pull` makes the copy, or says what is wrong.
    """
    if (version := find(address)) is None:
        return None
    if not intact(version):
        return None
    expected = read_manifest(version.tags[MANIFEST_TAG])
    folder = home() / "pulled" / digest(expected)[:32]
    try:
        verify(folder / MODEL, expected)
    except (OSError, RefusedModel):
        return None
    os.utime(folder)
    forget_unused(folder.parent)
    return folder / MODEL, f"models:/{version.name}/{version.version}"


def forget_unused(folder: Path) -> None:
    """Remove downloaded models that were not used for `UNUSED_DAYS` days."""
    for path in folder.iterdir():
        with suppress(OSError):  # another process was faster
            if time.time() - path.stat().st_mtime > UNUSED_DAYS * 86400:
                shutil.rmtree(path)
