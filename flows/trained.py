"""How a registered version was trained, as it was recorded with it: what a new training of it goes by."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from cluster import pulling
from flows.config import PipelineConfig, validate, validated
from flows.learner import ClassifierConfig, Learner, RecommenderConfig
from flows.provenance import RECORD
from flows.reproduction import IMPORT, NEEDED, with_base

LEARNERS: dict[str, type[Learner]] = {c.flow: c for c in (ClassifierConfig, RecommenderConfig)}


@dataclass(frozen=True)
class Trained:
    """A version and what it was made by."""

    version: str
    """Its exact address."""
    task: str
    """As `sentiment`; `base` for the pretrained model."""
    flow: str
    """`pipeline`, `refresh`, one of `LEARNERS`, or `finetune`: from a registered base model, with these settings."""
    settings: dict[str, Any]
    """Of the flow; sources as they were given: a folder, not the files that it held."""

    @property
    def name(self) -> str:
        """As `gpt2-sentiment`."""
        return self.version.removeprefix("models:/").rpartition("/")[0]

    def learner(self) -> Learner:
        """The settings of a learner's flow; `InvalidConfig` where this release has others."""
        return validated(LEARNERS[self.flow], self.settings)

    def pipeline(self) -> PipelineConfig:
        """The settings of the other flows; `InvalidConfig` where this release has others."""
        return validate(self.settings)

    def facts(self) -> dict[str, Any]:
        """For an event."""
        return asdict(self)


def trained(address: str) -> Trained:
    """How the version at `models:/NAME@ALIAS` or `models:/NAME/VERSION` was trained; `ValueError` where that is not
    known."""
    version = pulling.find(address)
    exact = pulling.exact(version)
    recorded = json.loads(pulling.read_text(version, RECORD))
    if not isinstance(recorded, dict) or not recorded.keys() >= NEEDED:
        raise ValueError(f"how {exact} was trained is not known: its {RECORD} is no record of ours; train it by hand")
    task, asked = recorded["model"], recorded.get("asked")
    if asked and asked["flow"] == IMPORT:
        raise ValueError(
            f"{exact} was imported from {asked['config']['source']}, not trained; gpt2 run refresh goes on from the "
            f"champion with text of yours"
        )
    if asked and asked["flow"] in LEARNERS:
        return Trained(exact, task, asked["flow"], asked["config"])
    if "gpt2.base_version" in version.tags:
        return Trained(exact, task, "finetune", with_base(recorded, version)["config"])
    settings = recorded["config"]
    settings["corpus"]["sources"] = recorded.get("sources", settings["corpus"]["sources"])
    return Trained(exact, task, "refresh" if "gpt2.refreshed_from" in version.tags else "pipeline", settings)
