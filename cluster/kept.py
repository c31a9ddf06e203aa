"""The checkpoints of trainings that have not ended, or that kept their last: found, verified, continued, exported."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.checkpoints import verify
from cluster.home import store
from cluster.mirror import Mirror
from gpt2.artifact import DamagedArtifact, read_manifest
from gpt2.journal import Events

CHECKPOINTS, STATE = "_checkpoints", "state"
"""Folders of checkpoints: of a training under way, and of one that has ended."""


@dataclass(frozen=True)
class Kept:
    """A checkpoint."""

    path: Path
    manifest: dict[str, Any] | None
    """None where it is not there whole."""

    @property
    def training(self) -> str:
        """`base-<id>` of the artifact that the training makes."""
        work = self.path.parent.parent
        return work.name if self.path.parent.name == CHECKPOINTS else f"{work.parent.name}-{work.name}"

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
    for pattern in (f".partial/*/{CHECKPOINTS}/step-*", f"*/*/{STATE}/step-*"):
        for path in sorted(store().root.glob(pattern)):
            yield Kept(path, read_manifest(path))


def keep_state(output: Path) -> None:
    """Keep the last checkpoint of a training that has ended as `output/state/step-N`; again after a kill, no harm."""
    aside = output / f"_{STATE}"
    if (output / STATE).exists():
        return
    aside.mkdir(exist_ok=True)
    if not any(aside.iterdir()):
        last = max((output / CHECKPOINTS).glob("step-*"))
        os.rename(last, aside / last.name)
    os.rename(aside, output / STATE)


def earlier(kind: str, id: str | None, copies: str | None) -> str | None:
    """Where the checkpoints of the training `kind/id` are: with its model, with its unfinished work, or among the
    copies at an fsspec address. None for no id; `ValueError` where there are none."""
    if id is None:
        return None
    root = store().root
    for folder in (root / kind / id / STATE, root / ".partial" / f"{kind}-{id}" / CHECKPOINTS):
        if any(folder.glob("step-*")):
            return str(folder)
    if copies and Mirror(copies, f"{kind}-{id}", Events(None)).steps():
        return f"{copies.rstrip('/')}/{kind}-{id}"
    raise ValueError(
        f"continue_from={id}: there is no checkpoint of {kind}/{id} in {root}; name a training that has not ended "
        f"(`gpt2 checkpoints` lists them), one that ran with keep_state: true, or set cluster.checkpoint_url to where "
        f"its copies are"
    )


def export(path: Path, out: Path) -> None:
    """Write the model that a checkpoint holds as a model that people pull; `ValueError` where it can't be."""
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new folder")
    try:
        manifest = verify(path)
    except OSError as error:
        raise ValueError(f"{path} is no checkpoint: {error.strerror}; `gpt2 checkpoints` lists them") from None
    from cluster.fragments import MASTER, Saved
    from gpt2.engine import trained
    from gpt2.jobs import Job, build

    parts = build(Job.model_validate(located(manifest["header"]["job"])))
    saved = Saved(path)
    for name, parameter in trained(parts.module):
        parameter.data.copy_(saved.whole(MASTER, name, parameter.numel()).view_as(parameter))
    out.mkdir(parents=True, exist_ok=True)
    parts.save(out)


def located(job: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's job with the paths of its inputs on this machine."""
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
    """The folder of `kind/id`, or the path that was recorded for something that is no artifact."""
    if Path(name).is_absolute():
        return Path(name)
    kind, id = name.split("/")
    return store().require(kind, id).path
