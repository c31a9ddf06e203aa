"""The one idea between stages: an artifact, a directory with a `manifest.json` that is written last.

An artifact's id is a hash of what it was made from: kind, settings, the ids of its inputs and the code of its
stage. A stage whose artifact exists has nothing to do; a directory without a manifest that verifies is not an
artifact. The chain of ids leads from a registered model back to every document. Atomic writes, fsync and digests are
here too.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2.store.code import code_version

MANIFEST = "manifest.json"


class DamagedArtifact(ValueError):
    """A file of an artifact is missing or is not what its manifest says."""


def digest(value: Any) -> str:
    """Return the sha256 (hex) of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


LFS = b"version https://git-lfs.github.com/spec/"
"""The first bytes of the pointer that a clone without git-lfs holds in place of a file."""
IS_POINTER = "is a pointer of git-lfs, not the file itself; fetch the file with `git lfs pull`"


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Key:
    """Everything that an artifact is made from; its `id` is the artifact's name."""

    kind: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Id of each input by name: an artifact's id, or the sha256 of an outside file."""
    code: tuple[str, ...] = ()
    """Modules (and files, as `PACKAGE:FILE`) whose code the result depends on."""

    @property
    def id(self) -> str:
        """The id: 16 hexadecimal digits."""
        parts = [self.kind, dict(self.spec), dict(self.inputs), code_version(*self.code)]
        return digest(parts)[:16]


@dataclass(frozen=True)
class Artifact:
    """A finished, read-only directory."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.manifest["id"]

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def info(self) -> dict[str, Any]:
        """Figures that the stage recorded: counts, metrics, seconds. They are not part of the id."""
        return self.manifest["info"]

    def file(self, name: str) -> Path:
        """Return the path of a file in the manifest; `KeyError` if it is not listed."""
        if name not in self.manifest["files"]:
            raise KeyError(
                f"artifact {self.kind}/{self.id} has no file {name!r}; it has {sorted(self.manifest['files'])}"
            )
        return self.path / name

    def verify(self) -> None:
        """Compare the sha256 of every file with the manifest; `DamagedArtifact` names the first that differs."""
        for name, entry in self.manifest["files"].items():
            path = self.path / name
            if not path.is_file():
                raise DamagedArtifact(f"{path} is missing; delete {self.path} to make it anew")
            if file_sha256(path) != entry["sha256"]:
                raise DamagedArtifact(f"{path} is not what its manifest says; delete {self.path} to make it anew")


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return a directory's manifest; None if it is absent or cut, or if a file's size differs from it."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        sizes_match = all((path / n).stat().st_size == e["size"] for n, e in manifest["files"].items())
        return manifest if sizes_match else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file such that it is complete or absent, even after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """Hash and fsync every file under `path`, then write `manifest.json` and return it. From then on the directory is
    complete."""
    for left in path.glob(f".{MANIFEST}.*.tmp"):  # left by a kill
        left.unlink()
    files = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != MANIFEST):
        with open(file, "rb") as stream:
            files[file.relative_to(path).as_posix()] = {
                "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
                "size": file.stat().st_size,
            }
            os.fsync(stream.fileno())
    manifest = {**header, "files": files}
    write_atomically(path / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return manifest


class Store:
    """Artifacts under one local or shared directory: `ROOT/KIND/ID/`; work in progress is under `ROOT/.partial/`."""

    def __init__(self, root: Path | str):
        self.root = Path(root).resolve()

    def path(self, key: Key) -> Path:
        return self.root / key.kind / key.id

    def partial(self, key: Key) -> Path:
        """Return the working directory of `key`. It survives a kill, so that the stage can resume from it."""
        return self.root / ".partial" / f"{key.kind}-{key.id}"

    def find(self, key: Key) -> Artifact | None:
        """Return the finished artifact of `key`, or None. Names and sizes are checked here, contents by
        `Artifact.verify`."""
        return self.get(key.kind, key.id)

    def get(self, kind: str, id: str) -> Artifact | None:
        """Return the finished artifact of that kind and id, or None."""
        path = self.root / kind / id
        manifest = read_manifest(path)
        if manifest is None or manifest.get("id") != id:
            return None
        return Artifact(path, manifest)

    def require(self, kind: str, id: str) -> Artifact:
        """Return the verified artifact of that kind and id; `DamagedArtifact` if there is none."""
        artifact = self.get(kind, id)
        if artifact is None:
            raise DamagedArtifact(f"there is no complete artifact {kind}/{id} in {self.root}; run its stage again")
        artifact.verify()
        return artifact

    def make(self, key: Key, build: Callable[[Path], Mapping[str, Any] | None]) -> Artifact:
        """Return the artifact of `key`; if there is none, make it by `build(directory)`, which returns figures for
        `info`.

        `directory` persists between attempts: the stage itself must check the files that a killed attempt left. Two
        processes that want the same artifact take turns, and the second finds it finished. A crash leaves no artifact.
        Files whose name begins with `_` are scratch and are removed at the end.
        """
        with self._lock(key):
            found = self.find(key)
            if found is not None:
                return found
            work = self.partial(key)
            work.mkdir(parents=True, exist_ok=True)
            (work / MANIFEST).unlink(missing_ok=True)
            started = time.time()
            info = dict(build(work) or {})
            for scratch in work.glob("_*"):
                shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
            header = {
                "id": key.id,
                "kind": key.kind,
                "spec": dict(key.spec),
                "inputs": dict(key.inputs),
                "code": code_version(*key.code),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "info": {"seconds": round(time.time() - started, 2), **info},
            }
            manifest = seal(work, header)
            target = self.path(key)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():  # incomplete: `find` would have found an artifact
                shutil.rmtree(target)
            os.replace(work, target)
            sync_directory(target.parent)
            return Artifact(target, manifest)

    def remove(self, kind: str, id: str) -> None:
        """Remove an artifact, or the remains of one; from the first moment it no longer counts as one.

        The caller must make sure that nobody reads it or makes it meanwhile.
        """
        path = self.root / kind / id
        (path / MANIFEST).unlink(missing_ok=True)
        if path.exists():
            shutil.rmtree(path)
        (self.root / ".locks" / f"{kind}-{id}").unlink(missing_ok=True)

    @contextmanager
    def _lock(self, key: Key) -> Iterator[None]:
        """Hold the lock of `key`, one process at a time; the system releases it if the process dies."""
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{key.kind}-{key.id}", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
