"""The version behind an address, known before it is loaded; and the entry point of models:/ for `gpt2.load`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gpt2
from cluster.process_env import configure
from cluster.registry import local
from gpt2.loading import SCHEME, LoadedModel
from gpt2.store.artifact import digest
from gpt2.store.model_files import manifest


def models(address: str) -> tuple[Path, str]:
    """Return (the folder of the verified files, the version's exact address); see `cluster.registry.download.pull`."""
    configure()  # before MLflow is imported, or it would send telemetry
    if here := local.pull(address):
        return here
    from cluster.registry.download import pull  # MLflow

    return pull(address)


def listed() -> list[dict[str, Any]]:
    """Return the rows of `cluster.registry.versions.versions`, without MLflow where the registry is a local file."""
    if (found := local.versions()) is not None:
        return [version.row() for version in found]
    from cluster.registry.versions import versions  # MLflow

    return versions()


def unusable_champions() -> list[str]:
    """Return what `cluster.registry.versions.unusable_champions` returns, without MLflow if all are intact here."""
    found = local.versions()
    if found is not None and all(local.intact(version) for version in found if "champion" in version.aliases):
        return []
    from cluster.registry import versions  # MLflow

    return versions.unusable_champions()


@dataclass(frozen=True)
class ResolvedModel:
    """A model, and the version that its address pointed at when it was resolved."""

    name: str
    """The registered name, such as `gpt2-sentiment`."""
    address: str
    """The exact address, with a version in place of an alias."""
    identity: str
    """Digest of its files: 16 hexadecimal digits."""
    examples: str
    """The id of the artifact of its labelled data; "" if unknown."""
    metric: str
    """Its measured metric, such as `macro f1 0.71`; "" if unknown."""


def resolve_model(address: str) -> ResolvedModel:
    """Return the model at `models:/NAME@ALIAS`, `models:/NAME/VERSION` or in a directory; raises `ValueError` if there
    is none."""
    if not SCHEME.match(address):
        files = manifest(Path(address)) if Path(address).is_dir() else None
        if files is None:
            raise ValueError(f"{address}: is not a model's directory; give one, or models:/NAME@ALIAS")
        return ResolvedModel(Path(address).name, address, digest(files)[:16], "", "")
    from cluster.registry import download  # MLflow

    try:
        version = download.find(address)
    except ValueError as error:
        raise ValueError(f"{error}; `gpt2 run` trains models, and the gate makes good ones the champion") from None
    with download.refusals(version):
        identity = digest(download.expected_files(version))[:16]
    tags = version.tags
    metric = f"{tags['gpt2.metric'].replace('_', ' ')} {float(tags['gpt2.value']):.2f}" if "gpt2.value" in tags else ""
    return ResolvedModel(version.name, download.exact(version), identity, tags.get("gpt2.data", ""), metric)


@lru_cache(maxsize=2)  # one that recommends, one that writes the reasons
def load(address: str, task: str) -> LoadedModel:
    """Return the model, with its files verified; raises `ValueError` if it is a model of another task."""
    model = gpt2.load(address)
    if model.task != task:
        raise ValueError(f"{address}: is a model for {model.task}; give one for {task}")
    return model
