"""The flow `retrain`: a registered model is trained again, as it was recorded, on its sources as they are now."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from cluster.registry import download
from cluster.registry.lineage import Lineage
from flows.config import PipelineConfig, validate, validated
from flows.jobs.own_data import fine_tuned, in_turn
from flows.jobs.own_data_plan import (
    CHAMPION,
    ClassifierConfig,
    OwnDataConfig,
    OwnDataPlan,
    RecommenderConfig,
    plan_of,
    pretrained,
)
from flows.jobs.refresh_plan import RefreshPlan, like
from flows.jobs.run import run_stage
from flows.plan import Plan, make_plan, registered_before, run_identity, task_identity
from flows.runs.ending import HOOKS, carry_out
from flows.runs.locks import turn
from flows.runs.stage import say
from flows.stages.provenance import IMPORT, NEEDED, RECORD, with_base

LEARNERS: dict[str, type[OwnDataConfig]] = {c.flow: c for c in (ClassifierConfig, RecommenderConfig)}


@dataclass(frozen=True)
class RetrainPlan:
    """A version, what it was made by, and what would be made of its sources as they are now."""

    version: str
    """Its exact address."""
    task: str
    """As `sentiment`; `base` for the pretrained model."""
    flow: str
    """`pipeline`, `refresh`, one of `LEARNERS`, or `finetune`: from a registered base model, with these settings."""
    settings: dict[str, Any]
    """Of the flow; sources as they were given: a folder, not the files that it held."""

    @classmethod
    def of(cls, address: str) -> RetrainPlan:
        """How the version at `models:/NAME@ALIAS` or `models:/NAME/VERSION` was trained; `ValueError` where that is not
        known."""
        version = download.find(address)
        exact = download.exact(version)
        recorded = json.loads(download.read_text(version, RECORD))
        if not isinstance(recorded, dict) or not recorded.keys() >= NEEDED:
            raise ValueError(
                f"how {exact} was trained is not known: its {RECORD} is no record of ours; train it by hand"
            )
        task, asked = recorded["model"], recorded.get("asked")
        if asked and asked["flow"] == IMPORT:
            raise ValueError(
                f"{exact} was imported from {asked['config']['source']}, not trained; gpt2 run refresh goes on from "
                f"the champion with text of yours"
            )
        if asked and asked["flow"] in LEARNERS:
            return cls(exact, task, asked["flow"], asked["config"])
        if "gpt2.base_version" in version.tags:
            return cls(exact, task, "finetune", with_base(recorded, version)["config"])
        settings = recorded["config"]
        settings["corpus"]["sources"] = recorded.get("sources", settings["corpus"]["sources"])
        return cls(exact, task, "refresh" if "gpt2.refreshed_from" in version.tags else "pipeline", settings)

    @property
    def name(self) -> str:
        """As `gpt2-sentiment`."""
        return self.version.removeprefix("models:/").rpartition("/")[0]

    def learner(self) -> OwnDataConfig:
        """The settings of a learner's flow; `InvalidConfig` where this release has others."""
        return validated(LEARNERS[self.flow], self.settings)

    def pipeline(self) -> PipelineConfig:
        """The settings of the other flows; `InvalidConfig` where this release has others."""
        return validate(self.settings)

    def facts(self) -> dict[str, Any]:
        """For an event."""
        return asdict(self)

    @cached_property
    def own_data(self) -> OwnDataPlan | None:
        """Of a flow that learns data of one's own."""
        return OwnDataPlan.of(self.learner()) if self.flow in LEARNERS else None

    @cached_property
    def stage(self) -> Literal["pipeline", "refresh"] | None:
        """The run that does it; None where the champion of the base model learns the task alone: also after a refresh
        that would find nothing new."""
        if self.flow == "refresh":
            return "refresh" if RefreshPlan.of(self.pipeline()).nothing() is None else None
        return "pipeline" if self.flow == "pipeline" else None

    @cached_property
    def base(self) -> Lineage:
        """The champion, which learns a task alone; `ValueError` where there is none."""
        base = pretrained(CHAMPION)
        if base is None:
            raise ValueError("gpt2-base has no champion to learn; make one: gpt2 run")
        return base

    @cached_property
    def config(self) -> PipelineConfig:
        """The settings of the new training."""
        if self.own_data:
            return self.own_data.settings
        return self.pipeline() if self.stage else like(self.base, self.pipeline())

    @cached_property
    def plan(self) -> Plan:
        """The keys of all artifacts."""
        if self.own_data:
            return self.own_data.plan
        return make_plan(self.config) if self.stage else plan_of(self.config, self.base)

    @property
    def identity(self) -> str:
        """The same for runs that would make the same, whatever form they were asked for in."""
        return run_identity(self.stage, self.plan) if self.stage else task_identity(self.task, self.plan)

    def registered(self) -> list[dict[str, Any]] | None:
        """The rows of the registry where no new version can come of it, else None. Starts nothing."""
        if self.own_data:
            return self.own_data.registered()
        return registered_before(self.plan) if self.stage != "refresh" else None

    def nothing(self) -> str | None:
        """Why no new version can come of it; None where one can."""
        rows = self.registered()
        if rows is None:
            return None
        [version] = [row["version"] for row in rows if row["model"] == self.name] or ["?"]
        places = self.settings.get("tasks", {}).get(self.task) if self.flow not in LEARNERS else self.settings
        sources = [str((places or {})[what]) for what in ("source", "interactions") if (places or {}).get(what)]
        sources = sources if self.task != "base" else [str(s) for s in self.settings["corpus"]["sources"]]
        return (
            f"{self.name} version {version} was trained with these settings on what {', '.join(sources)} "
            f"hold{'s' if len(sources) == 1 else ''} now, so no new version can come of it; put what has come since "
            f"there, labelled, and run this again"
        )


@flow(name="retrain", flow_run_name="retrain-{model}", task_runner=ThreadPoolTaskRunner(max_workers=8), **HOOKS)
def retrain(model: str) -> Any:
    """A registered model is trained again with its own settings, on its sources as they are now: a new version, for
    the gate to judge. Without new data there is none, and the run says so.

    Args:
        model: Which one: models:/NAME/VERSION or models:/NAME@champion.
    """
    return carry_out(lambda: plan_again(model), train_again, lambda plan: plan.registered())


def plan_again(model: str) -> RetrainPlan:
    """The plan, having said how the version was trained; `ValueError` where that is not known."""
    plan = RetrainPlan.of(model)
    say(f"{plan.version} was trained by {plan.flow}; the same is done with its sources as they are now")
    return plan


def train_again(plan: RetrainPlan) -> Any:
    """As the version was trained: from data of one's own, in a run of all stages, or a task alone."""
    if plan.own_data:
        return in_turn(plan.own_data)
    if plan.stage:
        return run_stage(plan.stage, plan.config)
    with turn():
        return {"registered": fine_tuned(plan.task, plan.config, plan.plan)}
