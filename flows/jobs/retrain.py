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
from flows.runs.ending import HOOKS, carry_out, turn
from flows.runs.stage import say
from flows.stages.provenance import IMPORT, NEEDED, RECORD, with_base

LEARNERS: dict[str, type[OwnDataConfig]] = {c.flow: c for c in (ClassifierConfig, RecommenderConfig)}


@dataclass(frozen=True)
class RetrainPlan:
    """The plan of a retraining: the version, how it was trained, and the artifacts that its current sources give."""

    version: str
    """The exact address of the version."""
    task: str
    """Its task, such as `sentiment`; `base` for the pretrained model."""
    flow: str
    """The flow that trained it: `pipeline`, `refresh`, one of `LEARNERS`, or `finetune` from a registered base
    model."""
    settings: dict[str, Any]
    """The settings of the flow. Sources are as given: a folder, not the files that it held."""

    @classmethod
    def of(cls, address: str) -> RetrainPlan:
        """Return the plan for the version at `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

        Raises `ValueError` if it is not known how the version was trained.
        """
        version = download.find(address)
        exact = download.exact(version)
        recorded = json.loads(download.read_text(version, RECORD))
        if not isinstance(recorded, dict) or not recorded.keys() >= NEEDED:
            raise ValueError(
                f"how {exact} was trained is not known: its {RECORD} is not a record of this program; train it by hand"
            )
        task, asked = recorded["model"], recorded.get("asked")
        if asked and asked["flow"] == IMPORT:
            raise ValueError(
                f"{exact} was imported from {asked['config']['source']}, not trained; gpt2 run refresh continues "
                f"the champion's training with your text"
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
        """Return the registered name, such as `gpt2-sentiment`."""
        return self.version.removeprefix("models:/").rpartition("/")[0]

    def learner(self) -> OwnDataConfig:
        """Return the settings of a flow on your own data; raises `InvalidConfig` if this release's schema differs."""
        return validated(LEARNERS[self.flow], self.settings)

    def pipeline(self) -> PipelineConfig:
        """Return the settings of the other flows; raises `InvalidConfig` if this release's schema differs."""
        return validate(self.settings)

    def facts(self) -> dict[str, Any]:
        """Return the plan's fields, for an event."""
        return asdict(self)

    @cached_property
    def own_data(self) -> OwnDataPlan | None:
        """The plan of a training on your own data; None for the other flows."""
        return OwnDataPlan.of(self.learner()) if self.flow in LEARNERS else None

    @cached_property
    def stage(self) -> Literal["pipeline", "refresh"] | None:
        """The stage that retrains the model; None if only the task is fine-tuned, from the champion of the base model.

        It is also None for a refresh that would find nothing new.
        """
        if self.flow == "refresh":
            return "refresh" if RefreshPlan.of(self.pipeline()).nothing() is None else None
        return "pipeline" if self.flow == "pipeline" else None

    @cached_property
    def base(self) -> Lineage:
        """The champion of the base model; raises `ValueError` if there is none."""
        base = pretrained(CHAMPION)
        if base is None:
            raise ValueError("gpt2-base has no champion to fine-tune; make one: gpt2 run")
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
        """Return an id that is the same for runs that would make the same model, in whatever form they were
        requested."""
        return run_identity(self.stage, self.plan) if self.stage else task_identity(self.task, self.plan)

    def registered(self) -> list[dict[str, Any]] | None:
        """Return the registry's rows if no new version would be made, else None. Starts nothing."""
        if self.own_data:
            return self.own_data.registered()
        return registered_before(self.plan) if self.stage != "refresh" else None

    def nothing(self) -> str | None:
        """Return why no new version would be made; None if one would."""
        rows = self.registered()
        if rows is None:
            return None
        [version] = [row["version"] for row in rows if row["model"] == self.name] or ["?"]
        places = self.settings.get("tasks", {}).get(self.task) if self.flow not in LEARNERS else self.settings
        sources = [str((places or {})[what]) for what in ("source", "interactions") if (places or {}).get(what)]
        sources = sources if self.task != "base" else [str(s) for s in self.settings["corpus"]["sources"]]
        return (
            f"{self.name} version {version} was trained with these settings on what {', '.join(sources)} "
            f"hold{'s' if len(sources) == 1 else ''} now, so no new version can come of it; put newer, labelled data "
            f"there, and run this again"
        )


@flow(name="retrain", flow_run_name="retrain · {model}", task_runner=ThreadPoolTaskRunner(max_workers=8), **HOOKS)
def retrain(model: str) -> Any:
    """Train a registered model again with its own settings, on the current content of its sources; the gate judges the
    new version. Without new data the run ends at once.

    Args:
        model: The model: models:/NAME/VERSION or models:/NAME@champion.
    """
    return carry_out(lambda: plan_again(model), train_again, lambda plan: plan.registered())


def plan_again(model: str) -> RetrainPlan:
    """Log how the version was trained; return the plan. Raises `ValueError` if it is not known."""
    plan = RetrainPlan.of(model)
    say(f"{plan.version} was trained by {plan.flow}; the same is done with the current content of its sources")
    return plan


def train_again(plan: RetrainPlan) -> Any:
    """Train as the version was trained: on your own data, in a run of all stages, or a task alone."""
    if plan.own_data:
        return in_turn(plan.own_data)
    if plan.stage:
        return run_stage(plan.stage, plan.config)
    with turn():
        return {"registered": fine_tuned(plan.task, plan.config, plan.plan)}
