"""The plan of a refresh: the documents that the champion has not seen, and the keys that follow from them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

from cluster.home import store
from cluster.registry.lineage import PARENT, Lineage, canaries_in, champion_lineage
from flows.config import InvalidConfig, PipelineConfig, validate
from flows.plan import ExistingKey, Plan, base_keys, document_keys, registered_before, task_keys
from flows.stage_code import stage_code
from gpt2.model.config import ModelShape
from gpt2.store.artifact import Artifact, Key
from gpt2.training.config import TrainConfig

SMALL = 32_000_000
"""Most bytes of source files that are cleaned without starting Ray, in some seconds."""


@dataclass(frozen=True)
class RefreshPlan:
    """The source files that are new or changed since the champion's training, and the artifacts made from them."""

    config: PipelineConfig
    """The settings, with the champion's model, tokenizer, split and canaries."""
    champion: Lineage
    files: int
    """Number of files in all sources."""
    sources: tuple[str, ...]
    """The new or changed files; `documents` are their keys."""
    documents: tuple[Key, ...]

    @classmethod
    def of(cls, config: PipelineConfig, champion: Lineage | None = None) -> RefreshPlan:
        """Return the plan of a refresh of the champion, by default the registry's.

        Reads the source files; starts nothing. Raises `ValueError` if there is no champion, or `InvalidConfig`.
        """
        champion = champion or champion_lineage()
        asked, config = config.canaries, like(champion, config)
        if asked.count and not config.canaries.count:
            raise InvalidConfig(
                f"canaries.count={asked.count}: a refresh plants none, and the text of the champion, gpt2-base version "
                f"{champion.version}, has none; set canaries.count to 0, or train anew on all text: gpt2 run"
            )
        seen = {id for _, id in champion.document_ids()}
        sources, keys = document_keys(config)
        new = {key.id: (path, key) for path, key in zip(sources, keys, strict=True) if key.id not in seen}
        paths, documents = zip(*new.values(), strict=True) if new else ((), ())
        return cls(config, champion, len(sources), paths, documents)

    @cached_property
    def corpus(self) -> Key:
        """The key of the corpus: which of the documents are new."""
        inputs = {PARENT: self.champion.corpora[-1].id, **{f"{i:06d}": key.id for i, key in enumerate(self.documents)}}
        return Key("corpus", {}, inputs, stage_code("deduplicate"))

    @cached_property
    def tokens(self) -> Key:
        """The key of the encoded new documents."""
        before = self.champion
        return Key(
            "tokens",
            {"dtype": self.config.tokenizer.dtype, "validation_share": self.config.corpus.validation_share},
            {PARENT: before.tokens[-1].id, "corpus": self.corpus.id, "tokenizer": before.tokenizer.id},
            stage_code("encode"),
        )

    @property
    def small(self) -> bool:
        """Return whether the files are small enough to be cleaned without Ray."""
        local = all(os.path.isfile(path) for path in self.sources)
        return local and sum(os.path.getsize(path) for path in self.sources) <= SMALL

    def nothing(self) -> str | None:
        """Return why there is nothing to do, as far as is known by now; None if there is something to do. Starts
        nothing."""
        version = f"the champion, gpt2-base version {self.champion.version}"
        if not self.documents:
            return f"no new documents: {version}, knows all {self.files:,} source files"
        if (corpus := store().find(self.corpus)) is None:
            return None
        count, least = corpus.info["unique_documents"], self.config.refresh.min_new_documents
        amount = f"{count:,} documents in {len(self.documents):,} new or changed files are new to {version}"
        if count == 0:
            return f"no new documents: {version}, knows all that {len(self.documents):,} new or changed files hold"
        if count < least:
            return f"too few new documents: {amount}; it waits until there are refresh.min_new_documents={least:,}"
        if (tokens := store().find(self.tokens)) is None:
            return None
        if not self.new_samples(tokens):
            length, context = tokens.info["new_train_tokens"], self.config.pretrain.context
            return f"too little new text: {amount}, but {length:,} tokens are no sample of pretrain.context={context}"
        if few := self.too_few_alone(tokens):
            return f"too little new text: {amount}, but {few}"
        if rows := registered_before(self.plan(tokens)):
            [row] = [row for row in rows if row["model"] == "gpt2-base"]
            return f"done before: {amount}; version {row['version']} learned them, {row['verdict']}: {row['reasons']}"
        return None

    def new_samples(self, tokens: Artifact) -> int:
        """Return the number of samples in the new training text."""
        return max(0, tokens.info["new_train_tokens"] - 1) // self.config.pretrain.context

    @property
    def alone(self) -> bool:
        """Return whether there is no old text to replay, because the champion was imported."""
        return not self.champion.tokens[-1].info["train_tokens"]

    def too_few_alone(self, tokens: Artifact) -> str | None:
        """Return why the new text alone is too little; None if it is enough, or if old text is replayed."""
        context, batch = self.config.pretrain.context, self.config.pretrain.batch_size
        if not self.alone:
            return None
        if (count := self.new_samples(tokens)) < batch:
            return f"its {count:,} samples of pretrain.context={context} are less than pretrain.batch_size={batch}"
        if tokens.info["validation_tokens"] <= context:
            held = tokens.info["validation_documents"]
            return f"{held:,} of them are held out, too few to measure the model on"
        return None

    def training(self, tokens: Artifact) -> TrainConfig:
        """Return the training settings of the refresh."""
        refresh, samples = self.config.refresh, self.new_samples(tokens)
        if not self.alone:
            return refresh.training(self.config.pretrain, samples)
        train = refresh.model_copy(update={"replay_share": 0.0}).training(self.config.pretrain, samples)
        assert train.steps is not None
        return train.model_copy(update={"epochs": train.steps * train.batch_size / samples})  # the last batch is whole

    def plan(self, tokens: Artifact) -> Plan:
        """Return the keys of all artifacts, once the new tokens exist and set the number of steps."""
        config, before = self.config, self.champion
        tokenizer = ExistingKey("tokenizer", known=before.tokenizer.id)
        base = Key(
            "base",
            {
                "model": before.model.identity(),
                "train": self.training(tokens).identity(),
                "refresh": {"epochs": config.refresh.epochs},
                **config.cluster.changing(),
            },
            {PARENT: before.base.id, "tokens": tokens.id, "tokenizer": tokenizer.id},
            stage_code("train"),
        )
        pretrained = base_keys(
            base, self.tokens, config.canaries, config.evaluated_tokens(), **{PARENT: before.base.id}
        )
        tasks = {name: task_keys(name, config, base, tokenizer, self.tokens) for name in config.task_settings()}
        tags = {
            **before.tags,
            "gpt2.refreshed_from": f"gpt2-base/{before.version}",
            "gpt2.refreshed_from_artifact": before.base.id,
            "gpt2.new_documents": str(tokens.info["new_train_documents"] + tokens.info["new_validation_documents"]),
        }
        sources, documents = self.sources, self.documents
        return Plan(sources, documents, self.corpus, tokenizer, self.tokens, pretrained, tasks, tags)


def like(champion: Lineage, config: PipelineConfig) -> PipelineConfig:
    """Return the settings with the champion's model, tokenizer, split and canaries.

    Raises `InvalidConfig` if the other settings don't fit them.
    """
    model, split = champion.model, champion.tokens[-1].manifest["spec"]
    values = config.model_dump()
    values["model"] = {name: getattr(model, name) for name in ModelShape.model_fields}
    if champion.tokens[-1].info["train_tokens"]:  # an imported model has no text and no split
        values["corpus"]["validation_share"] = split["validation_share"]
    values["canaries"] = canaries_in(champion.tokens[0]).model_dump()
    values["tokenizer"] |= {
        "kind": champion.tokenizer.manifest["spec"].get("kind", "train"),  # imported ones don't say
        "vocab_size": model.vocab_size,
        "token_dtype": split["dtype"],
    }
    return validate(values)
