"""Copies of whole checkpoints in any place that fsspec reaches: what survives the loss of the disk itself.

A store of objects has no rename: the files go first and the manifest last, so that what has a manifest is whole;
leaving, the manifest goes first. What comes back is verified like any checkpoint.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import fsspec

from gpt2.artifact import MANIFEST, DamagedArtifact
from gpt2.journal import Events


class Mirror:
    """The checkpoints of one training under `url/name`."""

    def __init__(self, url: str, name: str, events: Events):
        self.fs, root = fsspec.core.url_to_fs(url)
        self.url, self.events = f"{url.rstrip('/')}/{name}", events
        self.root = f"{root.rstrip('/')}/{name}"

    def steps(self) -> list[str]:
        """Names of the complete checkpoints there, the latest first."""
        self.fs.invalidate_cache()
        found = self.fs.glob(f"{self.root}/step-*/{MANIFEST}")
        return sorted((m.group(1) for p in found if (m := re.search(r"(step-\d+)/[^/]+$", p))), reverse=True)

    def put(self, path: Path) -> None:
        """Copy a checkpoint, and remove there what is no longer kept beside it; a failure is told and not raised, as
        the checkpoint itself is whole."""
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
        """Bring the latest checkpoint that is whole into a folder that has none, under its name, or nothing.

        `ValueError` where the address can't be read: starting over might be wrong.
        """
        from cluster.checkpoints import verify

        try:
            steps = self.steps()
        except Exception as error:  # whatever that store raises
            raise ValueError(
                f"checkpoints in {self.url} can't be read ({type(error).__name__}: {error}); check "
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
