"""Checkpoints that are whole or absent: written aside, hashed, sealed by a manifest, then renamed into place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from gpt2.artifact import Artifact, DamagedArtifact, read_manifest, seal, sync_directory
from gpt2.engine import Engine


class Checkpoints:
    """`gpt2.train.Checkpoints` in a folder that all ranks reach: `step-00000100/` with a manifest each."""

    def __init__(self, folder: Path, keep: int, header: dict[str, Any], warn: Callable[[str], None]):
        """`header` says what the state depends on (world size, ZeRO stage); a differing one is not loaded."""
        self.folder, self.keep, self.header, self.warn = folder, keep, header, warn

    def complete(self) -> list[Path]:
        """Folders whose manifest lists files that are there, the latest first; contents not verified yet."""
        return sorted((p for p in self.folder.glob("step-*") if read_manifest(p)), reverse=True)

    def load(self, engine: Engine) -> int:
        chosen = [self._latest_intact() if engine.rank == 0 else None]
        dist.broadcast_object_list(chosen, src=0)
        if chosen[0] is None:
            return 0
        path, step = chosen[0]
        engine.load(path)
        return step

    def _latest_intact(self) -> tuple[Path, int] | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".writing-*"):
            shutil.rmtree(leftover)
        found = self.complete()
        for path in found:
            manifest = read_manifest(path)
            assert manifest is not None
            differing = {k: (manifest.get(k), v) for k, v in self.header.items() if manifest.get(k) != v}
            if differing:
                told = ", ".join(f"{k} was {was!r} and is {now!r}" for k, (was, now) in differing.items())
                raise ValueError(f"{path} can't be continued: {told}; set it back, or delete the folder to start over")
            try:
                Artifact(path, manifest).verify()
                return path, manifest["step"]
            except DamagedArtifact as error:
                self.warn(f"checkpoint refused: {error}; going back to the one before")
        if found:
            raise DamagedArtifact(f"no checkpoint in {self.folder} is intact; delete the folder to start over")
        return None

    def save(self, engine: Engine, step: int) -> None:
        aside = self.folder / f".writing-{step:08d}"
        final = self.folder / f"step-{step:08d}"
        if engine.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        dist.barrier()
        engine.save(aside)
        dist.barrier()
        if engine.rank == 0:
            seal(aside, {"step": step, **self.header})
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
            sync_directory(self.folder)
            for old in self.complete()[self.keep :]:
                shutil.rmtree(old)
        dist.barrier()
