"""Trace a registered base model back to the text that it was trained on, by the chain of ids in the store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.home import store
from gpt2.data.config import CanaryConfig
from gpt2.model.config import ModelConfig
from gpt2.store.artifact import Artifact, DamagedArtifact, Store
from gpt2.store.model_files import BASE_NAME
from gpt2.tasks.task import registered_name

PARENT = "parent"
"""Name of the input of a corpus, of tokens and of a base model that a refresh continued from."""

IMPORTED = "imported_from"
"""Key of the source of an imported base model in its `info`."""


@dataclass(frozen=True)
class Lineage:
    """A base model and the artifacts that it was made from, each oldest first."""

    version: str
    """The version of the registered `gpt2-base`."""
    base: Artifact
    tokenizer: Artifact
    tokens: tuple[Artifact, ...]
    corpora: tuple[Artifact, ...]

    @property
    def model(self) -> ModelConfig:
        return ModelConfig.model_validate(self.base.manifest["spec"]["model"])

    @property
    def tags(self) -> dict[str, str]:
        """Return tags for versions made from this model: the source of the weights, if they were imported."""
        source = published(store(), self.base)
        return {f"gpt2.{IMPORTED}": source} if source else {}

    def document_ids(self) -> list[tuple[Artifact, str]]:
        """Return (corpus, id of the cleaned file) of each file that the model has learned, in order."""
        return [
            (corpus, id)
            for corpus in self.corpora
            for name, id in sorted(corpus.manifest["inputs"].items())
            if name != PARENT
        ]

    def documents(self) -> list[Artifact]:
        """Return the cleaned files; raises `DamagedArtifact` if one is missing."""
        return [wanted(store(), "documents", id, corpus) for corpus, id in self.document_ids()]


def champion_lineage() -> Lineage:
    """Return the lineage of the champion of `gpt2-base`; raises `ValueError` if there is no champion, or its artifacts
    are not in this home."""
    from cluster.registry import versions  # MLflow

    name = registered_name(BASE_NAME)
    champion = versions.by_alias(name, versions.CHAMPION)
    if champion is None:
        raise ValueError(f"{name} has no champion to continue from; make one with the whole pipeline: gpt2 run")
    return registered_lineage(champion)


def registered_lineage(version: Any) -> Lineage:
    """Return the lineage of a version of `gpt2-base`; raises `ValueError` if its artifacts are not in this home."""
    from cluster.registry import versions  # MLflow

    id = version.tags.get(versions.ARTIFACT_TAG, "")
    base = store().get("base", id)
    if base is None:
        raise ValueError(
            f"{version.name} version {version.version} was made from base/{id}, which is not in {store().place}; set "
            f"GPT2_HOME to the home where it was trained, or train one here: gpt2 run"
        )
    return lineage(version.version, base)


def lineage(version: str, base: Artifact) -> Lineage:
    """Return the lineage of a base model in the store; raises `DamagedArtifact` if one of its inputs is missing."""
    inputs = base.manifest["inputs"]
    tokens = ancestors(store(), wanted(store(), "tokens", inputs["tokens"], base))
    corpora = [wanted(store(), "corpus", t.manifest["inputs"]["corpus"], t) for t in tokens]
    tokenizer = wanted(store(), "tokenizer", inputs["tokenizer"], base)
    return Lineage(version, base, tokenizer, tuple(tokens), tuple(corpora))


def ancestors(root: Store, artifact: Artifact) -> list[Artifact]:
    """Return the artifact and its parents, the oldest first; raises `DamagedArtifact` if one is missing."""

    def upwards() -> Iterator[Artifact]:
        current = artifact
        yield current
        while parent := current.manifest["inputs"].get(PARENT):
            current = wanted(root, current.kind, parent, current)
            yield current

    return list(upwards())[::-1]


def canaries_in(tokens: Artifact) -> CanaryConfig:
    """Return the settings of the canaries in the text, with a count of 0 if there are none. A refresh adds none."""
    return CanaryConfig.model_validate(tokens.manifest["spec"].get("canaries", {}))


def published(root: Store, base: Artifact | None) -> str | None:
    """Return the source of the imported weights that a base model descends from.

    Returns None if it was trained here, or if a parent is missing.
    """
    while base is not None and (parent := base.manifest["inputs"].get(PARENT)):
        base = root.get("base", parent)
    return base.info.get(IMPORTED) if base is not None else None


def wanted(root: Store, kind: str, id: str, by: Artifact) -> Artifact:
    """Return the input `kind/id` of the artifact `by`; raises `DamagedArtifact` if it is missing."""
    artifact = root.get(kind, id)
    if artifact is None:
        raise DamagedArtifact(
            f"{by.kind}/{by.id} was made from {kind}/{id}, which is not complete in {root.place}; bring it back from a "
            f"copy, or train anew on all text with the whole pipeline: gpt2 run"
        )
    return artifact
