"""Checkpoints on disk: verified, found, continued, exported, discarded; and their copies anywhere fsspec reaches.

Copies survive the loss of the disk itself. A store of objects has no rename: the files go first and the manifest last,
so a copy with a manifest is whole; removal takes the manifest first. A copy that comes back is verified like any
checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from cluster.home import store
from gpt2.store.artifact import (
    MANIFEST,
    Artifact,
    DamagedArtifact,
    digest,
    read_manifest,
)
from gpt2.store.remote import CHECKPOINTS as IN_STORE
from gpt2.store.remote import RemoteStore
from gpt2.training.journal import Events


def verify(path: Path) -> dict[str, Any]:
    """Verify every byte of a checkpoint; return its manifest. Raises `DamagedArtifact` with the first fault."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        step, files = manifest["step"], manifest["files"]
        complete = bool(files) and manifest.pop("checksum") == digest(manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedArtifact(f"{path / MANIFEST} is not a manifest ({type(error).__name__})") from None
    if not complete or path.name != f"step-{step:08d}":
        raise DamagedArtifact(f"{path / MANIFEST} is not the manifest of this checkpoint")
    Artifact(path, manifest).verify()
    return manifest


def sealed(facts: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a checkpoint, with its own checksum, from the facts and {name: {sha256, size}}."""
    manifest = {**facts, "files": files, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    return {**manifest, "checksum": digest(manifest)}


def discard(path: Path) -> None:
    """Remove a checkpoint atomically: it is renamed first, so a kill leaves no partial checkpoint under its name."""
    gone = path.with_name(f".old-{path.name}-{uuid.uuid4().hex[:8]}")
    os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove the temporary folders of attempts that were killed."""
    for pattern in (".writing-*", ".old-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


CHECKPOINTS, STATE = "_checkpoints", "state"
"""Folders of checkpoints: that of a training under way, and that of one that has ended."""


@dataclass(frozen=True)
class Kept:
    """A checkpoint in the store."""

    path: Path
    manifest: dict[str, Any] | None
    """None if it is incomplete."""

    @property
    def training(self) -> str:
        """Return `KIND-ID` of the artifact that the training makes, such as `base-0123`."""
        work = self.path.parent.parent
        return work.name if self.path.parent.name == CHECKPOINTS else f"{work.parent.name}-{work.name}"

    @property
    def bytes(self) -> int:
        return sum(p.stat().st_size for p in self.path.iterdir())

    @property
    def age(self) -> float:
        """Return the seconds since it was written."""
        return time.time() - self.path.stat().st_mtime

    def damage(self) -> str | None:
        """Return its first fault; None if every byte is as written."""
        try:
            verify(self.path)
        except (DamagedArtifact, OSError) as error:
            return str(error)
        return None


def find() -> Iterator[Kept]:
    """Yield the checkpoints in the store, by training and step."""
    for pattern in (f".partial/*/{CHECKPOINTS}/step-*", f"*/*/{STATE}/step-*"):
        for path in sorted(store().root.glob(pattern)):
            yield Kept(path, read_manifest(path))


def keep_state(output: Path) -> None:
    """Keep the last checkpoint of a training that has ended as `output/state/step-N`. Safe to repeat after a kill."""
    aside = output / f"_{STATE}"
    if (output / STATE).exists():
        return
    aside.mkdir(exist_ok=True)
    if not any(aside.iterdir()):
        last = max((output / CHECKPOINTS).glob("step-*"))
        os.rename(last, aside / last.name)
    os.rename(aside, output / STATE)


def earlier(kind: str, id: str | None, copies: str | None) -> str | None:
    """Return the place of the checkpoints of the training `kind/id`: in the store, or at the fsspec address `copies`.

    Returns None without an id; raises `ValueError` if there are no checkpoints.
    """
    if id is None:
        return None
    place, name = store(), f"{kind}-{id}"
    artifact = place.get(kind, id)
    if artifact and any(file.startswith(f"{STATE}/") for file in artifact.manifest["files"]):
        return str(artifact.path / STATE)
    if any((folder := place.root / ".partial" / name / CHECKPOINTS).glob("step-*")):
        return str(folder)
    if isinstance(place, RemoteStore):
        copies = f"{place.remote.url}/{IN_STORE}"
    if copies and Mirror(copies, name, Events(None)).steps():
        return f"{copies.rstrip('/')}/{name}"
    raise ValueError(
        f"continue_from={id}: {place.place} has no checkpoint of {kind}/{id}; name a training that has not ended "
        f"(`gpt2 checkpoints` lists them), one that ran with keep_state: true, or set cluster.checkpoint_url to where "
        f"its copies are"
    )


def export(path: Path, out: Path) -> None:
    """Write the model of a checkpoint to the folder `out`, in the format of a registered model.

    Raises `ValueError` if `out` is not empty, or the checkpoint is missing or damaged.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; give a new folder")
    try:
        manifest = verify(path)
    except OSError as error:
        raise ValueError(f"{path}: is not a checkpoint ({error.strerror}); `gpt2 checkpoints` lists them") from None
    from cluster.engine.fragments import MASTER, Saved
    from gpt2.training.engine import trained
    from gpt2.training_job import TrainingJob, build

    parts = build(TrainingJob.model_validate(located(manifest["header"]["job"])))
    saved = Saved(path)
    for name, parameter in trained(parts.module):
        parameter.data.copy_(saved.full(MASTER, name, parameter.numel()).view_as(parameter))
    out.mkdir(parents=True, exist_ok=True)
    parts.save(out)


def located(job: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's job with the paths of its inputs in this home."""
    described = {**job, "output": "", "tokens": dict(job["tokens"]) if job["tokens"] else None}
    for name in ("tokenizer", "base", "examples", "teacher"):
        if described.get(name):
            described[name] = str(place(described[name]) / ("model" if name in ("base", "teacher") else ""))
    if described["tokens"]:
        for split in ("train", "validation"):
            files = [name.rsplit("/", 1) for name in described["tokens"][split]]
            described["tokens"][split] = [str(place(folder) / file) for folder, file in files]
    described["train"] = {**described["train"], "micro_batch_size": 1}
    return described


def place(name: str) -> Path:
    """Return the folder of the artifact `kind/id`; an absolute path is returned as it is."""
    if Path(name).is_absolute():
        return Path(name)
    kind, id = name.split("/")
    return store().require(kind, id).path


class Mirror:
    """Copies of the checkpoints of one training under `url/name`, at any fsspec address."""

    def __init__(self, url: str, name: str, events: Events):
        self.fs, root = fsspec.core.url_to_fs(url)
        self.url, self.events = f"{url.rstrip('/')}/{name}", events
        self.root = f"{root.rstrip('/')}/{name}"

    def steps(self) -> list[str]:
        """Return the names of the complete copies, the latest first."""
        self.fs.invalidate_cache()
        manifests = self.fs.glob(f"{self.root}/step-*/{MANIFEST}")
        return sorted((m.group(1) for p in manifests if (m := re.search(r"(step-\d+)/[^/]+$", p))), reverse=True)

    def put(self, path: Path) -> None:
        """Copy a checkpoint, and remove the copies of checkpoints that are no longer kept.

        A failure is recorded as an event and not raised, because the checkpoint itself is complete.
        """
        try:
            names = sorted(p.name for p in path.iterdir() if p.name != MANIFEST)
            self.fs.makedirs(f"{self.root}/{path.name}", exist_ok=True)
            if self.fs.exists(old := f"{self.root}/{path.name}/{MANIFEST}"):
                self.fs.rm_file(old)
            for name in [*names, MANIFEST]:
                self.fs.put_file(str(path / name), f"{self.root}/{path.name}/{name}")
            for gone in set(self.steps()) - {p.name for p in path.parent.glob("step-*")}:
                self.fs.rm_file(f"{self.root}/{gone}/{MANIFEST}")
                self.fs.rm(f"{self.root}/{gone}", recursive=True)
        except Exception as error:  # whatever that store raises
            self.events.tell("not mirrored", path=path.name, url=self.url, reason=f"{type(error).__name__}: {error}")

    def fetch(self, folder: Path) -> None:
        """Copy the latest complete checkpoint into a folder that has none; does nothing if there is none.

        Raises `ValueError` if the address can't be read, because starting over might be wrong.
        """

        try:
            steps = self.steps()
        except Exception as error:  # whatever that store raises
            raise ValueError(
                f"{self.url}: its checkpoints can't be read ({type(error).__name__}: {error}); check "
                f"cluster.checkpoint_url and the credentials, or leave it out"
            ) from None
        for name in steps:
            aside = folder / f".writing-{name}"
            shutil.rmtree(aside, ignore_errors=True)
            target = aside / name
            target.mkdir(parents=True)
            for file in self.fs.ls(f"{self.root}/{name}", detail=False):
                self.fs.get_file(file, str(target / Path(file).name))
            try:
                verify(target)
            except (DamagedArtifact, OSError) as error:
                self.events.tell("damaged checkpoint", path=f"{self.url}/{name}", reason=str(error))
                shutil.rmtree(aside)
                continue
            target.rename(folder / name)
            shutil.rmtree(aside)
            self.events.tell("fetched", path=name, url=self.url)
            return
