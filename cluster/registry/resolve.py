"""Which model scheduled jobs use, known before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import gpt2
from cluster.process_env import configure
from gpt2.loading import SCHEME, LoadedModel
from gpt2.store.artifact import digest
from gpt2.store.model_files import manifest


def models(address: str) -> tuple[Path, str]:
    """(the folder of the verified files, the version's exact address); see `cluster.registry.download.pull`."""
    configure()  # before MLflow is imported, which would phone home
    from cluster.registry.download import pull

    return pull(address)


@dataclass(frozen=True)
class ResolvedModel:
    """A model and the version that it was at this moment."""

    name: str
    """As `gpt2-sentiment`."""
    address: str
    """Exact: of an alias, the version that it points at."""
    identity: str
    """16 hexadecimal digits, of its files."""
    examples: str
    """The id of the artifact of its labelled data, "" where that is not known."""
    metric: str
    """What was measured of it, as `macro f1 0.71`, "" where that is not known."""


def resolve_model(address: str) -> ResolvedModel:
    """The model at `models:/NAME@ALIAS`, `models:/NAME/VERSION` or in a directory; `ValueError` where there is none."""
    if not SCHEME.match(address):
        files = manifest(Path(address)) if Path(address).is_dir() else None
        if files is None:
            raise ValueError(f"{address} is no directory; give a model's, or models:/NAME@ALIAS")
        return ResolvedModel(Path(address).name, address, digest(files)[:16], "", "")
    from cluster.registry import download  # MLflow

    try:
        version = download.find(address)
    except ValueError as error:
        raise ValueError(f"{error}; `gpt2 run` makes models, and the gate a champion of a good one") from None
    with download.refusals(version):
        identity = digest(download.expected_files(version))[:16]
    tags = version.tags
    metric = f"{tags['gpt2.metric'].replace('_', ' ')} {float(tags['gpt2.value']):.2f}" if "gpt2.value" in tags else ""
    return ResolvedModel(version.name, download.exact(version), identity, tags.get("gpt2.data", ""), metric)


@lru_cache(maxsize=2)  # as who recommends and who writes the reasons
def load(address: str, task: str) -> LoadedModel:
    """The model, its files verified; `ValueError` where it is one of another task."""
    model = gpt2.load(address)
    if model.task != task:
        raise ValueError(f"{address} is a model for {model.task}, not for {task}")
    return model
