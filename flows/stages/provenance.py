"""The texts kept with a registered model: its card, and the record from which it can be made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.home import store
from cluster.process_env import numerical_environment
from cluster.registry import download
from cluster.registry.lineage import IMPORTED
from flows.config import PipelineConfig
from flows.plan import Plan, absolute_place
from flows.runs.stage import commit_tag
from gpt2.data.canaries import PLANTED
from gpt2.evaluation.model_card import NAME as CARD
from gpt2.evaluation.model_card import Rows, card
from gpt2.store.artifact import Artifact, Key
from gpt2.store.code import code_version
from gpt2.tasks.task import kind

RECORD = "provenance.json"
NEEDED = {"model", "artifact", "config", "stages", "environment"}
"""Fields that a record must have."""
IMPORT = "import"
"""Name of the requested flow in records of imported models."""


def about(name: str, config: PipelineConfig, plan: Plan, model: Artifact, report: dict[str, Any]) -> dict[str, str]:
    """Return the texts that are kept among a model's files: its card, and `provenance.json`."""
    recorded = record(name, config, plan, model)
    return {
        CARD: model_card(name, config, plan, model, report, recorded),
        RECORD: json.dumps(recorded, indent=1) + "\n",
    }


def keys_of(name: str, plan: Plan) -> list[tuple[str, Key]]:
    """Return (what, key) of each artifact that the model comes from, in order; the model itself is the last."""
    keys_in_order = [(what, key) for stage, what, key in plan.by_stage() if stage in ("tokenize", "pretrain")]
    if keys := plan.tasks.get(name):
        keys_in_order += [(f"{name} examples", keys.data), (f"{name} model", keys.model)]
    return keys_in_order


def record(name: str, config: PipelineConfig, plan: Plan, model: Artifact) -> dict[str, Any]:
    """Return the record that `gpt2 reproduce` uses: data ids, configuration, code versions, seeds and environment."""
    settings = config.model_dump(mode="json")
    settings["corpus"]["sources"] = list(plan.sources)  # whole paths, whatever the working directory is
    given: dict[str, Any] = (
        {"sources": [absolute_place(source) for source in config.corpus.sources]} if plan.sources else {}
    )
    given |= {"asked": dict(plan.asked)} if plan.asked else {}
    for other, own in config.task_settings(enabled_only=False).items():
        places = {what: absolute_place(place) for what, place in own.sources().items()}
        settings["tasks"][other] |= {"enabled": other == name, **places}
    stages = [
        {"what": what, "kind": k.kind, "id": k.id, "inputs": dict(k.inputs), "code": code_version(*k.code)}
        for what, k in keys_of(name, plan)
    ]
    return {
        "model": name,
        "artifact": {"kind": model.kind, "id": model.id},
        "config": settings,
        **given,
        "stages": stages,
        "environment": numerical_environment(),
        **commit_tag(),
    }


def with_base(recorded: dict[str, Any], version: Any) -> dict[str, Any]:
    """Return the record, with settings and stages of the registered base model if another run trained it.

    In that case this version's own settings name another text. Raises `ValueError` if the base model has no record.
    """
    base = version.tags.get("gpt2.base_version")
    if base is None or not isinstance(recorded, dict) or not recorded.keys() >= NEEDED:
        return recorded
    try:
        theirs = json.loads(download.read_text(download.find(f"models:/{base}"), RECORD))
    except ValueError as error:
        raise ValueError(f"{download.exact(version)} can't be made again without {base}: {error}") from None
    own = [stage for stage in recorded["stages"] if stage["what"].startswith(f"{recorded['model']} ")]
    config = {**theirs["config"], "tasks": recorded["config"]["tasks"]}
    task = config["tasks"][recorded["model"]]
    workers = task["num_workers"] or recorded["config"]["cluster"]["num_workers"]
    config["tasks"] = {**config["tasks"], recorded["model"]: {**task, "num_workers": workers}}
    return {**recorded, "config": config, "stages": [*theirs["stages"], *own], "base": theirs.get("asked")}


def model_card(
    name: str, config: PipelineConfig, plan: Plan, model: Artifact, report: dict[str, Any], recorded: dict[str, Any]
) -> str:
    """Return the model card, as Markdown."""
    tuned = config.task_settings().get(name)  # None for the pretrained model
    train, workers = tuned.train if tuned else config.pretrain, config.task_cluster(name)
    data: list[tuple[str, Any]] = [("text", ", ".join(Path(s).name for s in plan.sources))]
    data += figures(plan.tokens, "train_documents", "train_tokens", "validation_tokens", PLANTED)
    if tuned:
        data.append(("labelled data", ", ".join(Path(s).name for s in tuned.sources().values())))
        data += figures(plan.of(name).data, "train", "validation", "test", "users", "items", "interactions")
    figures_of_training = [(k.replace("_", " "), f"{v:,.4g}") for k, v in model.info.items() if k in TRAINING_FIGURES]
    training: list[tuple[str, Any]] = [
        *figures_of_training,
        ("batch size", train.batch_size),
        ("context", train.context),
        ("learning rate", f"{train.optimizer.learning_rate:g}"),
        ("precision", train.precision),
        ("seed", train.seed),
        ("workers", f"{workers.num_workers}, ZeRO stage {workers.zero_stage}"),
    ]
    if tuned:
        training.append(("what it changes", tuned.adaptation.kind))
    lineage = [(s["what"], f"`{s['kind']}/{s['id']}`") for s in recorded["stages"]]
    lineage += [("commit", f"`{recorded['git.commit']}`")] if "git.commit" in recorded else []
    if source := plan.tags.get(f"gpt2.{IMPORTED}"):
        lineage.insert(0, ("weights imported from", source))
    return card(kind(name), plan.of(name).registered, report, data, training, lineage)


TRAINING_FIGURES = ("steps", "seconds", "tokens_per_second", "train_loss", "validation_loss")


def figures(key: Key, *names: str) -> Rows:
    """Return the named counts in an artifact's `info`, as rows of a table."""
    info = store().require(key.kind, key.id).info
    return [(name.replace("_", " "), info[name]) for name in names if name in info]
