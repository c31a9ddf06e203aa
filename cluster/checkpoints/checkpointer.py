"""Write and load checkpoints atomically: each is written aside in the background, verified, sealed and renamed into
place.

Each rank writes its file, and a seal with the file's sha256. Rank 0 waits for all seals, writes the manifest and
renames the folder. The ranks exchange no messages for this, so training goes on meanwhile.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cluster.checkpoints.files import Mirror, discard, sealed, sweep, verify
from gpt2.store.artifact import (
    MANIFEST,
    DamagedArtifact,
    file_sha256,
    read_manifest,
    sync_directory,
    write_atomically,
)
from gpt2.training.engine import Engine
from gpt2.training.guard import GaveUp, NotWritten
from gpt2.training.journal import Events

PATIENCE = 600.0
"""Seconds that rank 0 waits for the files of the other ranks."""


class Checkpointer:
    """Saves and loads the checkpoints of one training, in a folder that all ranks reach.

    Each is a folder such as `step-00000100/` with a manifest. It is what `gpt2.training.loop.fit` calls.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        archive_every: int | None,
        header: dict[str, Any],
        events: Events,
        alive: Callable[[], None] = lambda: None,
        mirror: Mirror | None = None,
        earlier: Mirror | None = None,
        background: bool = True,
    ):
        """`header` identifies the job: checkpoints of another job are not loaded. `alive` is called while waiting.

        `mirror` gets a copy of each checkpoint, and returns the latest if the folder has none. If it has none either,
        the latest comes from `earlier`, the mirror of another training.
        """
        self.folder, self.keep, self.archive_every = folder, keep, archive_every
        self.header, self.events, self.alive, self.background = header, events, alive, background
        self.mirror, self.earlier = mirror, earlier
        self.attempt = ""
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def load(self, engine: Engine) -> tuple[int, dict[str, Any]]:
        chosen: list[Any] = [None]
        if engine.rank == 0:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                sweep(self.folder)
                chosen = [(self._latest_intact(), uuid.uuid4().hex[:8])]
            except ValueError as error:  # sent to all ranks below
                chosen = [error]
        dist.broadcast_object_list(chosen, src=0)
        if isinstance(chosen[0], ValueError):
            raise GaveUp(str(chosen[0]))
        latest, self.attempt = chosen[0]
        if latest is None:
            return 0, {}
        path, manifest = latest
        engine.load(self._here(path, manifest))
        return manifest["step"], manifest["state"]

    def _here(self, path: Path, manifest: dict[str, Any]) -> Path:
        """Return the folder on this machine of the checkpoint that rank 0 found."""
        return path

    def _latest_intact(self) -> tuple[Path, dict[str, Any]] | None:
        for source in (self.mirror, self.earlier):
            if source and not any(self.folder.glob("step-*")):
                source.fetch(self.folder)
        folders = sorted(self.folder.glob("step-*"), reverse=True)
        for path in folders:
            try:
                manifest = verify(path)
            except (DamagedArtifact, OSError) as error:
                self.events.tell("damaged checkpoint", path=str(path), reason=str(error))
                continue
            self._check(path, manifest)
            return path, manifest
        if folders:
            raise DamagedArtifact(
                f"{self.folder}: none of its {len(folders)} checkpoints is intact; restore one from a copy, or "
                f"delete the folder to start over"
            )
        if self.earlier:
            raise ValueError(f"{self.earlier.url}: has no complete checkpoint to continue from; correct continue_from")
        return None

    def _check(self, path: Path, manifest: dict[str, Any]) -> None:
        """Raise `ValueError` for the state of another job; record an event if settings that may change have changed."""
        was, now = flat(manifest["header"]), flat(self.header)
        changed = {k: [was.get(k), now.get(k)] for k in sorted(was.keys() | now.keys()) if was.get(k) != now.get(k)}
        refused = {k: v for k, v in changed.items() if not k.startswith(MAY_CHANGE)}
        if refused:
            differences = ", ".join(f"{k} was {a!r} and is {b!r}" for k, (a, b) in refused.items())
            raise ValueError(
                f"{path} can't be continued: {differences}; set it back, or delete the folder to start over"
            )
        if changed:
            self.events.tell("changed", step=manifest["step"], **{k.replace(".", "_"): v for k, v in changed.items()})

    def save(self, engine: Engine, step: int, state: dict[str, Any], loss: float | None) -> None:
        began = time.perf_counter()
        self.wait()
        write = engine.snapshot()
        facts: dict[str, Any] = {"step": step, "loss": finite(loss), "state": state, "header": self.header}
        facts |= {"world_size": engine.world_size, "tokens": self.header.get("batch_tokens", 0) * step}
        stall = time.perf_counter() - began

        def work() -> None:
            try:
                self._write(engine.rank, write, facts, stall)
            except BaseException as error:
                self.error = error

        if not self.background:
            work()
            self.wait()
            return
        self.thread = threading.Thread(target=work, daemon=True, name=f"checkpoint-{step}")
        self.thread.start()

    def wait(self) -> None:
        while self.thread is not None:
            self.thread.join(1)
            self.alive()
            if not self.thread.is_alive():
                self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def _write(self, rank: int, write: Callable[[Path], Path], facts: dict[str, Any], stall: float) -> None:
        began = time.perf_counter()
        aside = self.folder / f".writing-{facts['step']:08d}-{self.attempt}"
        try:
            aside.mkdir(parents=True, exist_ok=True)
            file = write(aside)
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
            entry = {file.name: {"sha256": file_sha256(file), "size": file.stat().st_size}}
            write_atomically(aside / f"seal-{rank:05d}.json", json.dumps(entry).encode())
            if rank == 0:
                size = self._seal(aside, facts)
                self._retain()
                if self.mirror:
                    self.mirror.put(self.folder / f"step-{facts['step']:08d}")
                seconds = round(time.perf_counter() - began, 3)
                self.events.tell("checkpoint", step=facts["step"], stall=round(stall, 4), seconds=seconds, bytes=size)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise not_written(self.folder, facts["step"], error) from error

    def _seal(self, aside: Path, facts: dict[str, Any]) -> int:
        """Wait for every rank's file, then rename the folder to a checkpoint; return its size in bytes."""
        expected = [aside / f"seal-{r:05d}.json" for r in range(facts["world_size"])]
        until = time.monotonic() + PATIENCE
        while missing := [s.name for s in expected if not s.exists()]:
            if time.monotonic() > until:
                raise TimeoutError(f"{aside}: no {', '.join(missing)} after {PATIENCE:g} s")
            if not aside.exists():
                raise FileNotFoundError(f"{aside} was removed by a rank that could not write")
            time.sleep(0.02)
        files: dict[str, Any] = {}
        for seal in expected:
            files |= json.loads(seal.read_text())
            seal.unlink()
        write_atomically(aside / MANIFEST, json.dumps(sealed(facts, files), indent=1, sort_keys=True).encode())
        final = self.folder / f"step-{facts['step']:08d}"
        if final.exists():
            discard(final)
        os.rename(aside, final)
        sync_directory(self.folder)
        return sum(entry["size"] for entry in files.values())

    def _retain(self) -> None:
        manifests = {p: m for p in self.folder.glob("step-*") if (m := read_manifest(p))}
        steps = {m["step"]: m.get("loss") for m in manifests.values()}
        kept = retained(steps, self.keep, self.archive_every)
        for path, manifest in manifests.items():
            if manifest["step"] not in kept:
                discard(path)


MAY_CHANGE = (
    *(f"job.train.{name}" for name in ("steps", "epochs", "precision", "optimizer", "guard", "continue_from")),
    "placement",
)
"""Parts of a header that may differ when a run goes on: the schedule, the skipping of steps, and the placement."""


def retained(steps: dict[int, float | None], keep: int, archive_every: int | None) -> set[int]:
    """Return which of the steps (with their validation loss) to keep: the last `keep`, the best, every
    `archive_every`-th."""
    kept = set(sorted(steps)[-keep:])
    losses = {s: loss for s, loss in steps.items() if loss is not None}
    if losses:
        kept.add(min(losses, key=lambda s: (losses[s], -s)))
    if archive_every:
        kept |= {s for s in steps if s % archive_every == 0}
    return kept


def finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one with dotted names: {"a": {"b": 1}} as {"a.b": 1}."""
    if not isinstance(value, dict):
        return {name: value}
    parts: Iterable[dict[str, Any]] = (flat(v, f"{name}.{k}" if name else k) for k, v in value.items())
    return {k: v for part in parts for k, v in part.items()}


def not_written(folder: Path, step: int, error: OSError) -> NotWritten:
    """Return the error of a failed save, with the free space of the disk and the remedy."""
    free = shutil.disk_usage(folder).free if folder.exists() else 0
    return NotWritten(
        error.errno or 0,
        f"the checkpoint of step {step} could not be written to {folder} ({error.strerror or error}; {free:,} bytes "
        f"free); the one before is intact: make room and run the same command again",
    )
