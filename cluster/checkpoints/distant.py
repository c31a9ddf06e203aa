"""Checkpoints of ranks that share no disk: each uploads its own fragments, and rank 0 the manifest, last.

They are under `checkpoints/NAME/step-N/` in the store, with the layout of copies (`cluster.checkpoints.files.Mirror`).
The folder on a machine's disk is a cache of them: on loading a machine fetches what it lacks.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cluster.checkpoints.checkpointer import PATIENCE, Checkpointer, not_written, retained
from cluster.checkpoints.files import sealed, verify
from gpt2.store.artifact import MANIFEST, DamagedArtifact, file_sha256, write_atomically
from gpt2.store.remote import CHECKPOINTS, Remote
from gpt2.training.engine import Engine
from gpt2.training.journal import JOURNAL
from gpt2.training.loop import QUARANTINE

LOOK = 0.2
"""Seconds between two looks for the seals of the other ranks."""


class DistantCheckpointer(Checkpointer):
    """Saves and loads the checkpoints of one training through a store. `folder` is the machine's own."""

    def __init__(self, remote: Remote, name: str, folder: Path, *arguments: Any, **named: Any):
        super().__init__(folder, *arguments, **named)
        self.remote, self.address = remote, f"{CHECKPOINTS}/{name}"

    def load(self, engine: Engine) -> tuple[int, dict[str, Any]]:
        loaded = super().load(engine)
        kept = self.folder.parent / QUARANTINE  # rank 0 writes it; all ranks leave the same samples out
        box = [kept.read_bytes() if engine.rank == 0 and kept.exists() else None]
        dist.broadcast_object_list(box, src=0)
        if box[0] is not None and engine.rank:
            write_atomically(kept, box[0])
        return loaded

    def _latest_intact(self) -> tuple[Path, dict[str, Any]] | None:
        steps = [name for name in reversed(self.remote.names(self.address)) if self._manifest(name)]
        for name in steps:
            try:
                path, manifest = self.folder / name, self._manifest(name) or {}
                self._gather(name, manifest)
            except (DamagedArtifact, OSError) as error:
                self.events.tell(
                    "damaged checkpoint", path=f"{self.remote.url}/{self.address}/{name}", reason=str(error)
                )
                continue
            self._check(path, manifest)
            if not (journal := self.folder.parent / JOURNAL).exists() and (path / JOURNAL).exists():
                shutil.copyfile(path / JOURNAL, journal)
            return path, manifest
        if steps:
            raise DamagedArtifact(
                f"{self.remote.url}/{self.address}: none of its {len(steps)} checkpoints is intact; restore one from "
                f"a copy, or remove the folder to start over"
            )
        return super()._latest_intact() if self.earlier else None

    def _here(self, path: Path, manifest: dict[str, Any]) -> Path:
        if self._manifest(path.name):
            return self._gather(path.name, manifest)
        with self._alone():  # rank 0 began with the checkpoint of another training
            if self.earlier and not (self.folder / path.name).exists():
                self.earlier.fetch(self.folder)
        return self.folder / path.name

    def _manifest(self, name: str) -> dict[str, Any] | None:
        text = self.remote.read(f"{self.address}/{name}/{MANIFEST}")
        return json.loads(text) if text else None

    def _gather(self, name: str, manifest: dict[str, Any]) -> Path:
        """Fetch what this machine lacks of a checkpoint; return its folder. Raises `DamagedArtifact`."""
        here = self.folder / name
        with self._alone():
            whole = here / f".whole-{self.attempt}"
            if self.attempt and whole.exists():  # another rank of this machine did it
                return here
            here.mkdir(parents=True, exist_ok=True)
            for left in here.iterdir():
                if left.name not in manifest["files"]:
                    left.unlink()
            for file, entry in manifest["files"].items():
                if not (here / file).exists() or file_sha256(here / file) != entry["sha256"]:
                    self.remote.download(f"{self.address}/{name}/{file}", here / file, entry["sha256"])
            write_atomically(here / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
            verify(here)
            whole.touch()
        return here

    def _alone(self):
        return Alone(self.folder / ".gather")

    def _write(self, rank: int, write: Callable[[Path], Path], facts: dict[str, Any], stall: float) -> None:
        began = time.perf_counter()
        name = f"step-{facts['step']:08d}"
        aside, here = self.folder / f".writing-{name}-{self.attempt}-{rank}", self.folder / name
        try:
            aside.mkdir(parents=True, exist_ok=True)
            files = [write(aside)]
            if rank == 0 and (journal := self.folder.parent / JOURNAL).exists():
                files.append(Path(shutil.copyfile(journal, aside / JOURNAL)))
            entries = {f.name: {"sha256": file_sha256(f), "size": f.stat().st_size} for f in files}
            for file in files:
                self.remote.upload(file, f"{self.address}/{name}/{file.name}")
            self.remote.write(f"{self.address}/{name}/{self._seal_of(rank)}", json.dumps(entries).encode())
            here.mkdir(exist_ok=True)
            for file in files:
                os.replace(file, here / file.name)
            shutil.rmtree(aside, ignore_errors=True)
            for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise not_written(self.folder, facts["step"], error) from error
        if rank == 0:
            size = self._commit(name, facts)
            self._retain()
            seconds = round(time.perf_counter() - began, 3)
            self.events.tell("checkpoint", step=facts["step"], stall=round(stall, 4), seconds=seconds, bytes=size)

    def _seal_of(self, rank: int) -> str:
        return f"seal-{self.attempt}-{rank:05d}.json"

    def _commit(self, name: str, facts: dict[str, Any]) -> int:
        """Wait for every rank's seal, then write the manifest; return the checkpoint's size in bytes."""
        folder, expected = f"{self.address}/{name}", {self._seal_of(rank) for rank in range(facts["world_size"])}
        until = time.monotonic() + PATIENCE
        while missing := expected - set(self.remote.names(folder)):
            if time.monotonic() > until:
                raise TimeoutError(f"{self.remote.url}/{folder}: no {', '.join(sorted(missing))} after {PATIENCE:g} s")
            time.sleep(LOOK)
        files: dict[str, Any] = {}
        for seal in sorted(expected):
            files |= json.loads(self.remote.read(f"{folder}/{seal}") or b"{}")
            self.remote.remove(f"{folder}/{seal}")
        self.remote.write(f"{folder}/{MANIFEST}", json.dumps(sealed(facts, files), indent=1, sort_keys=True).encode())
        return sum(entry["size"] for entry in files.values())

    def _retain(self) -> None:
        manifests = {name: m for name in self.remote.names(self.address) if (m := self._manifest(name))}
        steps = {m["step"]: m.get("loss") for m in manifests.values()}
        kept = retained(steps, self.keep, self.archive_every)
        for name, manifest in manifests.items():
            if manifest["step"] not in kept:
                self.remote.remove(f"{self.address}/{name}/{MANIFEST}")
                self.remote.remove(f"{self.address}/{name}")


class Alone:
    """A lock among the ranks of a machine, as a context."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.handle = open(path, "w")  # noqa: SIM115 - closed at the end of the context

    def __enter__(self) -> None:
        fcntl.flock(self.handle, fcntl.LOCK_EX)

    def __exit__(self, *exception: object) -> None:
        self.handle.close()
