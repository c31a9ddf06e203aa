"""The checkpoints of trainings that have not ended: found, verified, exported to the plain model format."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.checkpoints import verify
from cluster.home import store
from gpt2.artifact import DamagedArtifact, read_manifest


@dataclass(frozen=True)
class Kept:
    """A checkpoint of an unfinished training."""

    path: Path
    manifest: dict[str, Any] | None
    """None where it is not there whole."""

    @property
    def training(self) -> str:
        """`base-<id>` of the artifact that the training makes."""
        return self.path.parent.parent.name

    @property
    def bytes(self) -> int:
        return sum(p.stat().st_size for p in self.path.iterdir())

    @property
    def age(self) -> float:
        """Seconds since it was written."""
        return time.time() - self.path.stat().st_mtime

    def damage(self) -> str | None:
        """What is wrong with it, None where every byte is as written."""
        try:
            verify(self.path)
        except (DamagedArtifact, OSError) as error:
            return str(error)
        return None


def find() -> Iterator[Kept]:
    """The checkpoints in the store, by training and step."""
    for path in sorted(store().root.glob(".partial/*/_checkpoints/step-*")):
        yield Kept(path, read_manifest(path))


def export(path: Path, out: Path) -> None:
    """Write the model that a checkpoint holds as a model that people pull; `ValueError` where it can't be."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new folder")
    try:
        manifest = verify(path)
    except OSError as error:
        raise ValueError(f"{path} is no checkpoint: {error.strerror}; `gpt2 checkpoints` lists them") from None
    from cluster.fragments import MASTER, Saved
    from gpt2.jobs import Job, build

    parts = build(Job.model_validate(located(manifest["header"]["job"])))
    saved = Saved(path)
    for name, parameter in parts.module.named_parameters():
        parameter.data.copy_(saved.whole(MASTER, name, parameter.numel()).view_as(parameter))
    out.mkdir(parents=True, exist_ok=True)
    parts.save(out)


def located(job: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's job with the paths of its inputs on this machine."""
    described = {**job, "output": "", "tokens": dict(job["tokens"]) if job["tokens"] else None}
    for name in ("tokenizer", "base", "examples"):
        if described[name]:
            described[name] = str(place(described[name]) / ("model" if name == "base" else ""))
    if described["tokens"]:
        for split in ("train", "validation"):
            files = [name.rsplit("/", 1) for name in described["tokens"][split]]
            described["tokens"][split] = [str(place(folder) / file) for folder, file in files]
    described["train"] = {**described["train"], "micro_batch_size": 1}
    return described


def place(name: str) -> Path:
    """The folder of `kind/id`, or the path that was recorded for something that is no artifact."""
    if Path(name).is_absolute():
        return Path(name)
    kind, id = name.split("/")
    return store().require(kind, id).path
