"""From a registered base model back to the text that it was made from, by the chain of ids in the store."""

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
"""The input of a corpus, of tokens and of a base model that names the one which a refresh went on from."""

IMPORTED = "imported_from"
"""What `info` calls the source of an imported base model."""


@dataclass(frozen=True)
class Lineage:
    """A base model and what it was made from, each oldest first."""

    version: str
    """Of the registered `gpt2-base`."""
    base: Artifact
    tokenizer: Artifact
    tokens: tuple[Artifact, ...]
    corpora: tuple[Artifact, ...]

    @property
    def model(self) -> ModelConfig:
        return ModelConfig.model_validate(self.base.manifest["spec"]["model"])

    @property
    def tags(self) -> dict[str, str]:
        """Of the versions that are made from it: where the weights came from, if they were imported."""
        source = published(store(), self.base)
        return {f"gpt2.{IMPORTED}": source} if source else {}

    def document_ids(self) -> list[tuple[Artifact, str]]:
        """Of the cleaned files that the model has learned from, in order, each with the corpus that it belongs to."""
        return [
            (corpus, id)
            for corpus in self.corpora
            for name, id in sorted(corpus.manifest["inputs"].items())
            if name != PARENT
        ]

    def documents(self) -> list[Artifact]:
        """The cleaned files; `DamagedArtifact` where one is gone."""
        return [wanted(store(), "documents", id, corpus) for corpus, id in self.document_ids()]


def champion_lineage() -> Lineage:
    """Of the champion of `gpt2-base`; `ValueError` where there is none, or what it was made from is not here."""
    from cluster.registry import versions  # MLflow

    name = registered_name(BASE_NAME)
    champion = versions.by_alias(name, versions.CHAMPION)
    if champion is None:
        raise ValueError(f"{name} has no champion to go on from; make one with the whole pipeline: gpt2 run")
    return registered_lineage(champion)


def registered_lineage(version: Any) -> Lineage:
    """Of a version of `gpt2-base`; `ValueError` where what it was made from is not here."""
    from cluster.registry import versions  # MLflow

    id = version.tags.get(versions.ARTIFACT_TAG, "")
    base = store().get("base", id)
    if base is None:
        raise ValueError(
            f"{version.name} version {version.version} was made from base/{id}, which is not in {store().root}; set "
            f"GPT2_HOME to the home where it was trained, or train one here: gpt2 run"
        )
    return lineage(version.version, base)


def lineage(version: str, base: Artifact) -> Lineage:
    """Of a base model in the store; `DamagedArtifact` where something that it was made from is gone."""
    inputs = base.manifest["inputs"]
    tokens = ancestors(store(), wanted(store(), "tokens", inputs["tokens"], base))
    corpora = [wanted(store(), "corpus", t.manifest["inputs"]["corpus"], t) for t in tokens]
    tokenizer = wanted(store(), "tokenizer", inputs["tokenizer"], base)
    return Lineage(version, base, tokenizer, tuple(tokens), tuple(corpora))


def ancestors(root: Store, artifact: Artifact) -> list[Artifact]:
    """The artifact and its parents, the oldest first; `DamagedArtifact` where one is gone."""

    def upwards() -> Iterator[Artifact]:
        current = artifact
        yield current
        while parent := current.manifest["inputs"].get(PARENT):
            current = wanted(root, current.kind, parent, current)
            yield current

    return list(upwards())[::-1]


def canaries_in(tokens: Artifact) -> CanaryConfig:
    """Those that are planted in the text; with a count of 0 where there are none. A refresh adds none."""
    return CanaryConfig.model_validate(tokens.manifest["spec"].get("canaries", {}))


def published(root: Store, base: Artifact | None) -> str | None:
    """Where the weights were imported from that a base model goes back to; None where it was trained here, or what it
    went on from is gone."""
    while base is not None and (parent := base.manifest["inputs"].get(PARENT)):
        base = root.get("base", parent)
    return base.info.get(IMPORTED) if base is not None else None


def wanted(root: Store, kind: str, id: str, by: Artifact) -> Artifact:
    """An input of an artifact; `DamagedArtifact` where it is gone."""
    artifact = root.get(kind, id)
    if artifact is None:
        raise DamagedArtifact(
            f"{by.kind}/{by.id} was made from {kind}/{id}, which is not complete in {root.root}; bring it back from a "
            f"copy, or train anew on all text with the whole pipeline: gpt2 run"
        )
    return artifact
