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
HANDED = "handed"
"""Kind of what travels through a distant store and is part of no other artifact."""


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
    store: Store | None = field(default=None, repr=False, compare=False)
    """The store that it is in."""

    @property
    def id(self) -> str:
        return self.manifest["id"]

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def name(self) -> str:
        """`KIND/ID`, by which any machine finds it (`Store.locate`)."""
        return f"{self.kind}/{self.id}"

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
    """Artifacts under one local or shared directory: `ROOT/KIND/ID/`; work in progress is under `ROOT/.partial/`.

    `gpt2.store.remote` has one at any address, of which `root` is a cache.
    """

    distant = False
    """True if other machines don't see `root`, so that files travel by name (`hand`, `locate`)."""

    def __init__(self, root: Path | str):
        self.root = Path(root).resolve()

    @property
    def place(self) -> str:
        """The store's address, for messages."""
        return str(self.root)

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
        return Artifact(path, manifest, self)

    def ids(self, kind: str) -> list[str]:
        """Return the sorted ids of that kind, with those of incomplete artifacts."""
        folder = self.root / kind
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def require(self, kind: str, id: str) -> Artifact:
        """Return the verified artifact of that kind and id; `DamagedArtifact` if there is none."""
        artifact = self.get(kind, id)
        if artifact is None:
            raise DamagedArtifact(f"there is no complete artifact {kind}/{id} in {self.place}; run its stage again")
        artifact.verify()
        return artifact

    def name(self, path: Path | str) -> str:
        """Return `KIND/ID/FILE` of a path in an artifact, by which any machine finds it; another path as it is."""
        path = Path(path)
        if not path.is_relative_to(self.root) or path.relative_to(self.root).as_posix().startswith("."):
            return str(path)  # what begins with a dot is work in progress
        return path.relative_to(self.root).as_posix()

    def locate(self, name: str) -> Path:
        """Return the path on this machine of what `name` or `hand` named."""
        if Path(name).is_absolute():
            return Path(name)
        kind, id, *rest = name.split("/")
        artifact = self.get(kind, id)
        if artifact is None:
            raise DamagedArtifact(f"there is no complete artifact {kind}/{id} in {self.place}; run its stage again")
        return artifact.path.joinpath(*rest)

    def hand(self, path: Path) -> str:
        """Return the name by which another machine finds a file or folder, which may be in no artifact."""
        return self.name(path)

    def forget(self, name: str) -> None:
        """Remove what `hand` published under that name, if it did."""
        if name.startswith(f"{HANDED}/"):
            self.remove(*name.split("/")[:2])

    def make(self, key: Key, build: Callable[[Path], Mapping[str, Any] | None]) -> Artifact:
        """Return the artifact of `key`; if there is none, make it by `build(directory)`, which returns figures for
        `info`.

        `directory` persists between attempts: the stage itself must check the files that a killed attempt left. Two
        processes that want the same artifact take turns, and the second finds it finished. A crash leaves no artifact.
        Files whose name begins with `_` are scratch and are removed at the end.
        """
        with self.hold(f"{key.kind}-{key.id}"):
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
            return self.settle(key, work, seal(work, header))

    def settle(self, key: Key, work: Path, manifest: Mapping[str, Any]) -> Artifact:
        """Move finished work to its place; return the artifact."""
        self.move(work, self.path(key))
        return Artifact(self.path(key), manifest, self)

    def move(self, work: Path, target: Path) -> None:
        """Move a complete directory to its place."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # incomplete: `find` would have found an artifact
            shutil.rmtree(target)
        os.replace(work, target)
        sync_directory(target.parent)

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
    def hold(
        self, name: str, facts: Mapping[str, Any] | None = None, wait: bool = True
    ) -> Iterator[Mapping[str, Any] | None]:
        """Hold a lock during the block, one process at a time; the system releases it if the process dies.

        Yields None; without `wait`, where another process holds it, the `facts` that this one gave.
        """
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                handle.seek(0)
                try:
                    holder = json.loads(handle.read())
                except ValueError:  # it has not written its facts yet
                    holder = {}
                yield holder
                return
            handle.truncate(0)
            handle.write(json.dumps(facts or {}))
            handle.flush()
            yield None
