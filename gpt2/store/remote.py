"""A store at any address that fsspec reaches, such as s3://bucket/prefix, with a folder on this machine as its cache.

    PREFIX/store.json              the store's identity, made at its first use
    PREFIX/KIND/ID/SHA256          an artifact's files, named by their content, so that two makers never mix
    PREFIX/KIND/ID/manifest.json   written last, and by one maker only: from then on the artifact exists
    PREFIX/checkpoints/KIND-ID/    of the training that makes that artifact (`cluster.checkpoints.distant`)
    PREFIX/leases/NAME/NUMBER      who works on what (`Lease`)

A store of objects has no rename and no locks. All that is asked of it is to create an object only if it is absent
(If-None-Match of S3), which is also the fence: of two makers of an artifact the first counts.

A lease takes the place of a lock: an object that its holder renews, and that others watch. Each holder creates the
object of the next number, which only one of them can. Who sees it unchanged for `EXPIRY` seconds, by their own clock,
takes the holder for lost: clocks of machines need not agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt2.store.artifact import HANDED, MANIFEST, Artifact, DamagedArtifact, Key, Store, digest, file_sha256

PATIENCE = 120.0
"""Seconds for which an absent store is asked again."""
FIRST = 5.0
"""Seconds that the first answer may take: the address may be wrong."""
AT_ONCE = 8
"""Files of an artifact that travel at the same time."""
IDENTITY = "store.json"
INSIDE = "it"
"""Folder of what is handed, in its artifact: at the top a name that begins with `_` would be scratch."""
CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints of trainings under way, by `KIND-ID` of what each makes."""
ANSWERS = (FileNotFoundError, FileExistsError, PermissionError)
"""Errors with which a store answers, so that asking again does not help."""


class StoreUnreachable(ValueError):
    """The store does not answer, or refuses what is asked."""


class Remote:
    """The objects under an fsspec address. A store that is away for a while is asked again."""

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        try:
            self.fs, base = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StoreUnreachable(
                f"GPT2_STORE={url}: {error}; for s3:// install 'gpt2-pipeline[s3]', for others what fsspec names"
            ) from None
        self.base = base.rstrip("/")

    def path(self, name: str) -> str:
        return f"{self.base}/{name}"

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of the file system, again and again while the store is away, for `PATIENCE` seconds."""
        until, pause = time.monotonic() + PATIENCE, 0.5
        while True:
            try:
                return getattr(self.fs, method)(*arguments, **named)
            except PermissionError as error:
                raise StoreUnreachable(f"{self.url}: access denied ({error}); check the credentials") from error
            except ANSWERS:
                raise
            except Exception as error:  # whatever that file system raises
                if time.monotonic() + pause > until:
                    raise StoreUnreachable(
                        f"{self.url}: no answer for {PATIENCE:g} s ({type(error).__name__}: {error}); run the same "
                        f"command again when it is back"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def read(self, name: str) -> bytes | None:
        """Return the content of an object; None if it is absent."""
        with contextlib.suppress(FileNotFoundError):
            return self.ask("cat_file", self.path(name))
        return None

    def write(self, name: str, data: bytes) -> None:
        self.ask("pipe_file", self.path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object if it is absent; return whether its content is `data` now."""
        try:
            self.ask("pipe_file", self.path(name), data, mode="create")
            return True
        except FileExistsError:  # perhaps by this call, whose answer was lost
            return self.read(name) == data

    def upload(self, file: Path, name: str) -> None:
        self.ask("put_file", str(file), self.path(name))

    def download(self, name: str, file: Path, sha256: str) -> None:
        """Fetch an object; raise `DamagedArtifact` if it is absent or has another digest, also at a second try."""
        for _ in range(2):
            try:
                self.ask("get_file", self.path(name), str(file))
            except FileNotFoundError:
                raise DamagedArtifact(f"{self.url}/{name}: is missing; make its artifact anew") from None
            if file_sha256(file) == sha256:
                return
        raise DamagedArtifact(f"{self.url}/{name}: is not what its manifest says; make its artifact anew")

    def names(self, folder: str) -> list[str]:
        """Return the sorted names in a folder; [] if there is none."""
        try:
            return sorted(p.rstrip("/").rpartition("/")[2] for p in self.ask("ls", self.path(folder), detail=False))
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        """Remove an object or a folder of them, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.ask("rm", self.path(name), recursive=True)

    def identity(self) -> str:
        """Return the store's identity, made at its first use; `StoreUnreachable` within seconds if there is none."""
        with contextlib.suppress(Exception):  # told below
            getattr(self.fs, "connect", bool)()  # s3fs loads its client, which takes seconds on a busy machine
        result: list[Any] = []
        thread = threading.Thread(target=lambda: result.append(self._identity()), daemon=True)
        thread.start()
        thread.join(FIRST)
        outcome = result[0] if result else f"no answer within {FIRST:g} s; check the address and the network"
        if isinstance(outcome, str):
            raise StoreUnreachable(f"GPT2_STORE={self.url}: {outcome}")
        return outcome["id"]

    def _identity(self) -> dict[str, str] | str:
        """Return what is in `IDENTITY`, or why it can't be read."""
        name = self.path(IDENTITY)
        try:
            with contextlib.suppress(FileNotFoundError):
                return json.loads(self.fs.cat_file(name))
            with contextlib.suppress(FileExistsError):  # another machine was faster
                self.fs.pipe_file(name, json.dumps({"id": uuid.uuid4().hex[:16]}).encode(), mode="create")
            return json.loads(self.fs.cat_file(name))
        except FileNotFoundError:
            return "there is no such bucket; make it, or correct the address"
        except PermissionError as error:
            return f"access denied ({error}); check the credentials"
        except Exception as error:  # whatever that file system raises
            return f"{type(error).__name__}: {error}; check the address and the credentials"


class Distant(Artifact):
    """An artifact whose files are fetched, and verified on arrival, when its path is first asked for."""

    def __init__(self, store: RemoteStore, manifest: Mapping[str, Any]):
        self.__dict__.update(store=store, manifest=manifest)

    def __repr__(self) -> str:
        return f"Distant({self.kind}/{self.id})"

    @cached_property
    def path(self) -> Path:  # type: ignore[override]
        return self.store.fetch(self.manifest)  # type: ignore[union-attr]

    def verify(self) -> None:
        """Do nothing: `RemoteStore.fetch` verifies."""


class RemoteStore(Store):
    """Artifacts at a remote address. `root` is this machine's cache, which may be deleted while nothing runs.

    An artifact in the cache is also at the address. Work in progress is in the cache alone.
    """

    distant = True

    def __init__(self, remote: Remote, caches: Path, reopen: Callable[[], Store]):
        """`caches` has a folder per store. `reopen` opens this store on another machine, in that machine's cache."""
        super().__init__(caches / remote.identity())
        self.remote, self.reopen = remote, reopen

    def __reduce__(self) -> tuple[Callable[[], Store], tuple[()]]:
        return self.reopen, ()

    @property
    def place(self) -> str:
        return self.remote.url

    def get(self, kind: str, id: str) -> Artifact | None:
        found = super().get(kind, id)
        if found is None and (text := self.remote.read(f"{kind}/{id}/{MANIFEST}")):
            return Distant(self, json.loads(text))
        return found

    def ids(self, kind: str) -> list[str]:
        return self.remote.names(kind)

    def fetch(self, manifest: Mapping[str, Any]) -> Path:
        """Bring an artifact into the cache, once for all processes of this machine; return its path."""
        kind, id = manifest["kind"], manifest["id"]
        target = self.root / kind / id
        with super().hold(f"fetch-{kind}-{id}"):
            if super().get(kind, id):
                return target
            aside = self.root / ".partial" / f"fetch-{kind}-{id}"
            shutil.rmtree(aside, ignore_errors=True)  # of a fetch that was killed

            def bring(entry: tuple[str, Mapping[str, Any]]) -> None:
                file = aside / entry[0]
                file.parent.mkdir(parents=True, exist_ok=True)
                self.remote.download(f"{kind}/{id}/{entry[1]['sha256']}", file, entry[1]["sha256"])

            aside.mkdir(parents=True)
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(bring, manifest["files"].items()))
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
            self.move(aside, target)
        return target

    def settle(self, key: Key, work: Path, manifest: Mapping[str, Any]) -> Artifact:
        """Publish finished work; if another machine was faster, its result counts."""
        folder = f"{key.kind}/{key.id}"
        by_content = {entry["sha256"]: work / name for name, entry in manifest["files"].items()}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda item: self.remote.upload(item[1], f"{folder}/{item[0]}"), by_content.items()))
        if self.remote.create(f"{folder}/{MANIFEST}", (work / MANIFEST).read_bytes()):
            for name in set(self.remote.names(folder)) - {MANIFEST, *by_content}:  # half-uploaded by others
                self.remote.remove(f"{folder}/{name}")
            self.remote.remove(f"{CHECKPOINTS}/{key.kind}-{key.id}")
            return super().settle(key, work, manifest)
        shutil.rmtree(work)
        first = self.find(key)
        assert first is not None
        return first

    def remove(self, kind: str, id: str) -> None:
        self.remote.remove(f"{kind}/{id}/{MANIFEST}")
        self.remote.remove(f"{kind}/{id}")
        self.remote.remove(f"leases/{kind}-{id}")
        super().remove(kind, id)

    def hand(self, path: Path) -> str:
        """Return the name of a file or folder; what is in no artifact yet is published as one of kind `HANDED`."""
        name = self.name(path)
        if not Path(name).is_absolute():
            return name
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        content = {file.relative_to(path.parent).as_posix(): file_sha256(file) for file in files}

        def copy(out: Path) -> None:
            for file in files:
                to = out / INSIDE / file.relative_to(path.parent)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, to)

        made = self.make(Key(HANDED, {}, {"content": digest(content)}), copy)
        return f"{made.name}/{INSIDE}/{path.name}"

    @contextlib.contextmanager
    def hold(
        self, name: str, facts: Mapping[str, Any] | None = None, wait: bool = True
    ) -> Iterator[Mapping[str, Any] | None]:
        with super().hold(name, facts, wait) as holder:
            if holder is not None:
                yield holder
                return
            lease = Lease(self.remote, name, self._machine, facts or {})
            while (holder := lease.take()) is not None and wait:
                time.sleep(1)
            try:
                yield holder
            finally:
                lease.release()

    @cached_property
    def _machine(self) -> str:
        """The name of this cache, by which a holder that died here is known: its lock is free."""
        path = self.root / ".locks" / ".machine"
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".machine.{os.getpid()}.{threading.get_ident()}.tmp")
        aside.write_text(uuid.uuid4().hex)
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        aside.unlink()
        return path.read_text()


def open_store(address: str | None, home: Path, reopen: Callable[[], Store]) -> Store:
    """Return the store at an address: a folder or any fsspec URL; without an address the one in the home.

    `reopen` takes no arguments and opens the same store on another machine.
    """
    if not address:
        return Store(home / "store")
    if "://" not in address or address.startswith("file://"):
        return Store(address.removeprefix("file://"))
    return RemoteStore(Remote(address), home / "cache", reopen)


RENEWAL = 10.0
"""Seconds between two renewals."""
EXPIRY = 40.0
"""Seconds without a renewal after which a lease is free."""


class Lease:
    """One attempt to hold a name. Of the processes of a machine only one may try at a time."""

    def __init__(self, objects: Remote, name: str, machine: str, facts: Mapping[str, Any]):
        """`facts` on the holder are told to those who wait."""
        self.objects, self.folder, self.machine, self.facts = objects, f"leases/{name}", machine, facts
        self.number = 0
        self.watched: tuple[int, bytes | None] = (0, None)
        self.since = 0.0
        self.ended = threading.Event()
        self.renewing = threading.Thread(target=self._renew, daemon=True, name=f"lease-{name}")

    def take(self) -> Mapping[str, Any] | None:
        """Take the lease if it is free; return None then, else the facts on its holder."""
        numbers = [int(name) for name in self.objects.names(self.folder)]
        last = max(numbers, default=0)
        if last and (holder := self._holder(last)) is not None:
            return holder
        if not self.objects.create(self._object(last + 1), self._state()):
            return {}  # another was faster; the next look tells who
        self.number = last + 1
        for old in (n for n in numbers if n < last):
            self.objects.remove(self._object(old))
        self.renewing.start()
        return None

    def release(self) -> None:
        """Free the lease, if it was taken."""
        if self.number:
            self.ended.set()
            self.renewing.join()
            with contextlib.suppress(Exception):  # the store is away: the lease expires
                self.objects.write(self._object(self.number), self._state(released=True))

    def _holder(self, number: int) -> Mapping[str, Any] | None:
        """Return the facts on the holder of that number; None if it is gone."""
        content = self.objects.read(self._object(number))
        if (number, content) != self.watched:
            self.watched, self.since = (number, content), time.monotonic()
        state = json.loads(content or "{}")
        gone = state.get("released") or state.get("machine") == self.machine
        return None if gone or time.monotonic() - self.since > EXPIRY else state.get("facts", {})

    def _object(self, number: int) -> str:
        return f"{self.folder}/{number:08d}"

    def _state(self, released: bool = False) -> bytes:
        state = {"machine": self.machine, "facts": self.facts, "released": released, "renewal": uuid.uuid4().hex}
        return json.dumps(state).encode()

    def _renew(self) -> None:
        while not self.ended.wait(RENEWAL):
            with contextlib.suppress(Exception):  # the store is away: tried again
                self.objects.write(self._object(self.number), self._state())
