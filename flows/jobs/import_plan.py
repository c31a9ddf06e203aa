"""The settings of an import of published weights, and the keys of the artifacts that it makes.

Its training text is not here. So its corpus and its tokens are empty ones, in the usual chain: a refresh finds all text
new, and fine-tuning works as for any base model.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from cluster.batch import tokenization
from cluster.home import store
from cluster.registry.lineage import Lineage, registered_lineage
from flows.config import PipelineConfig, merged, resolve, validate
from flows.jobs.refresh_plan import like
from flows.plan import Plan, absolute_place, base_keys
from flows.stage_code import stage_code
from flows.stages.provenance import IMPORT
from gpt2.data.config import CanaryConfig, CorpusConfig, TokenizerConfig
from gpt2.data.tokenizer import Tokenizer
from gpt2.gate.config import GateConfig
from gpt2.model.config import ModelConfig
from gpt2.settings import Settings
from gpt2.store.artifact import Key
from gpt2.store.model_files import BASE_NAME
from gpt2.tasks.config import EvaluateConfig
from gpt2.tasks.task import registered_name, tasks

NAME = registered_name(BASE_NAME)


class ImportConfig(Settings):
    """Settings of an import: published weights become a version of the base model."""

    source: str = Field(..., min_length=1)
    """A directory with config.json, model.safetensors (or pytorch_model.bin, or shards of either) and tokenizer.json
    (or vocab.json and merges.txt), or the id of a model on the hub, such as openai-community/gpt2, or ID@REVISION."""
    revision: str | None = Field(None, min_length=1)
    """The commit, branch or tag of a model on the hub; empty: the latest."""
    online: bool = True
    """Fetch files from the hub that its local cache lacks; if off, only the cache is used."""
    champion: bool = False
    """Make it the champion even if the gate refused it, or had no text to measure it on."""
    gate: GateConfig = GateConfig()
    """Conditions under which it becomes the champion without `champion`."""

    @model_validator(mode="before")
    @classmethod
    def _revision_behind(cls, values: Any) -> Any:
        """Split a source ID@REVISION, as records and cards write it."""
        source = values.get("source") if isinstance(values, dict) else None
        if not isinstance(source, str) or values.get("revision") or "@" not in source or Path(source).exists():
            return values
        name, _, revision = source.rpartition("@")
        return {**values, "source": name, "revision": revision}

    @property
    def command(self) -> str:
        """Return the command that imports the same weights."""
        revision = ["--revision", self.revision] if self.revision else []
        return shlex.join(["gpt2", "import", self.source, *revision])


@dataclass(frozen=True)
class ImportPlan:
    """Weights and their tokenizer, in a directory that was checked."""

    config: ImportConfig
    directory: Path
    model: ModelConfig
    files: dict[str, str]
    """The sha256 of each file that is read. The ids follow from these, not from the place of the directory."""

    @classmethod
    def of(cls, config: ImportConfig) -> ImportPlan:
        """Return the plan, after checking all weights; those on the hub are fetched. Raises `ValueError` if they can't
        be imported."""
        from gpt2.weights import huggingface, published  # PyTorch

        if config.revision and Path(config.source).is_dir():
            raise ValueError(
                f"revision = {config.revision!r}: {config.source} is a directory, which has none; leave it out"
            )
        directory = huggingface.folder(config.source, config.online, config.revision).absolute()
        files = published.digests(directory)
        model, _ = published.read(directory)
        return cls(config, directory, model.config, files)

    @property
    def revision(self) -> str | None:
        """Return the commit, if the weights lie in the hub's cache; else None."""
        return self.directory.name if self.directory.parent.name == "snapshots" else None

    @property
    def source(self) -> str:
        """Return the exact source of the weights, for users."""
        place = self.config.source
        return absolute_place(place) if Path(place).is_dir() else f"{place}@{self.revision}" if self.revision else place

    @cached_property
    def plan(self) -> Plan:
        """The keys of all artifacts."""
        words = {
            name: sha for name, sha in self.files.items() if name.startswith(("tokenizer", "vocab", "merges", "added"))
        }
        tokenizer = Key("tokenizer", {}, words, stage_code("learn tokenizer"))
        corpus = Key("corpus", {"imported": True}, {}, stage_code("deduplicate"))
        dtype = TokenizerConfig(vocab_size=self.model.vocab_size).dtype
        split = {"dtype": dtype, "validation_share": CorpusConfig().validation_share}
        tokens = Key("tokens", split, {"corpus": corpus.id, "tokenizer": tokenizer.id}, stage_code("encode"))
        base = Key(
            "base",
            {"model": self.model.identity(), "train": {"context": self.model.n_positions}},
            {"tokens": tokens.id, "tokenizer": tokenizer.id, **self.files},
            stage_code("import weights"),
        )
        asked = {"flow": IMPORT, "config": self.config.model_dump(mode="json") | {"source": self.source}}
        pretrained = base_keys(base, tokens, CanaryConfig(), EvaluateConfig().most(None))
        return Plan((), (), corpus, tokenizer, tokens, pretrained, {}, {}, asked)

    @property
    def identity(self) -> str:
        """Return an id that is the same for imports of the same weights."""
        return f"import-{self.plan.base.id}"

    def registered(self) -> dict[str, Any] | None:
        """Return the registry's row if there is nothing left to do, else None. Starts nothing."""
        base = self.plan.base
        if store().find(base) is None:
            return None
        from cluster.registry import versions  # MLflow

        version = versions.by_artifact(NAME, base.id)
        if version is None:
            return None
        if self.config.champion:
            champion = versions.by_alias(NAME, versions.CHAMPION)
            return versions.row(version) if champion and champion.version == version.version else None
        # If there is no text to judge a version by, its description is the last step of its registration.
        described = version.description and isinstance(yardstick(base.id), str)
        settled = versions.judged(version) and versions.announced(version)
        return versions.row(version) if settled or described else None

    def nothing(self) -> str | None:
        """Return why there is nothing to do; None if there is something to do. Starts nothing."""
        row = self.registered()
        return in_words(row) if row else None


def prepare(weights: ImportPlan) -> None:
    """Make the tokenizer, an empty corpus and its tokens as artifacts."""
    plan, s = weights.plan, store()

    def words(out: Path) -> dict[str, Any]:
        tokenizer = Tokenizer.load(weights.directory)
        tokenizer.save(out)
        return {"vocab_size": tokenizer.vocab_size}

    def none(out: Path) -> dict[str, Any]:
        dtype = plan.tokens.spec["dtype"]
        return tokenization.encode(
            s, [], corpus, tokenizer, CorpusConfig(), dtype, stage_code("encode"), out, lambda _: None
        )

    tokenizer = s.make(plan.tokenizer, words)
    corpus = s.make(plan.corpus, lambda out: tokenization.deduplicate([], out))
    s.make(plan.tokens, none)


def settings_like(base: Lineage, context: int) -> PipelineConfig:
    """Return the settings of a pipeline with this base model alone, and a context of that many tokens."""
    alone = {
        "model": base.model.model_dump(exclude={"vocab_size"}),
        "pretrain": {"context": context},
        "tasks": {name: {"enabled": False} for name in tasks()},
    }
    return like(base, validate(merged(resolve().model_dump(), alone)))


def yardstick(base: str) -> Lineage | str:
    """Return the champion whose held-out text measures the base model `base`, or the reason why there is none."""
    from cluster.registry import versions  # MLflow

    champion = versions.by_alias(NAME, versions.CHAMPION)
    if champion is None or champion.tags.get(versions.ARTIFACT_TAG) == base:
        return f"{NAME} has no other champion, on whose held-out text it could be measured"
    try:
        lineage = registered_lineage(champion)
    except ValueError as error:
        return f"the champion's held-out text is not here: {error}"
    if not lineage.tokens[-1].info["validation_documents"]:
        return f"the champion, version {champion.version}, was imported too, and has no held-out text"
    return lineage


def in_words(row: dict[str, Any]) -> str:
    """Return a sentence on a registered version."""
    why = f": {row['reasons']}" if row["reasons"] else ""
    return f"{row['model']} version {row['version']} has these weights, {row['verdict']}{why}"
