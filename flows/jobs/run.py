"""The form of `gpt2 run` in the Prefect UI: all stages, one of them, or a refresh, with the main settings."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from flows.config import PipelineConfig, resolve
from flows.form import GATE, MAIN, Gate, Main, Preset, changes_of
from flows.jobs.refresh import refresh
from flows.jobs.refresh_plan import RefreshPlan
from flows.pipeline import STORY, pipeline
from flows.plan import Plan, make_plan, registered_before, run_identity
from flows.runs.ending import HOOKS, carry_out
from flows.runs.locks import turn
from gpt2.settings import Settings

TRAINS = ("pipeline", "pretrain", "finetune", "refresh")
Stage = Literal["pipeline", "tokenize", "pretrain", "finetune", "evaluate", "register", "refresh"]


@dataclass(frozen=True)
class StagePlan:
    """The plan of a run: a stage of the pipeline, all of them, or a refresh."""

    stage: Stage
    settings: PipelineConfig
    plan: Plan

    @classmethod
    def of(cls, stage: Stage, settings: PipelineConfig) -> StagePlan:
        """Return the plan; raises `ValueError` if a source is missing or can't be read."""
        return cls(stage, settings, make_plan(settings))

    @property
    def identity(self) -> str:
        """Return an id that is the same for runs that would make the same artifacts."""
        return run_identity(self.stage, self.plan)

    def nothing(self) -> str | None:
        """Return why `pipeline` or `refresh` has nothing to do; None if there is something to do, or for other
        stages."""
        if self.stage == "refresh" and (reason := RefreshPlan.of(self.settings).nothing()):
            return f"{reason}."
        if self.stage == "pipeline" and registered_before(self.plan):
            return "every stage was done before."
        return None


def settings_of(preset: str, main: Settings, gate: Settings, changes: list[str], file: str | None) -> PipelineConfig:
    """Return the settings of a filled form; raises `InvalidConfig`."""
    return resolve(preset, Path(file) if file else None, [*changes_of(main, MAIN), *changes_of(gate, GATE), *changes])


@flow(
    name="gpt2",
    flow_run_name="{stage}-{preset}",
    task_runner=ThreadPoolTaskRunner(max_workers=8),
    **HOOKS,
)
def run(
    stage: Stage = "pipeline",
    preset: Preset = "laptop",
    main: Main = Main(),  # noqa: B008 - settings are frozen
    gate: Gate = Gate(),  # noqa: B008
    changes: list[str] = [],  # noqa: B006 - Prefect shows the default in the form
    file: str = "",
) -> Any:
    """Train a GPT-2 of your own from text. Finished work is not repeated.

    Args:
        stage: The part to run: all stages, one stage, or `refresh`, which continues the champion's training on new
            documents.
        preset: Settings to start from: `laptop` takes minutes on two cores, `smoke` is the smallest, the others are
            the published sizes and need GPUs.
        main: The settings that are changed most. Empty fields keep the preset's value.
        gate: Conditions under which a model becomes the champion. Empty fields keep the preset's value.
        changes: Any other settings, each in the form pretrain.optimizer.warmup_steps=20.
        file: A YAML file on the machine of the worker, whose settings override the preset's.
    """
    return carry_out(
        lambda: StagePlan.of(stage, settings_of(preset, main, gate, changes, file)),
        lambda plan: run_stage(plan.stage, plan.settings),
        show_registered,
    )


def run_stage(stage: Stage, settings: PipelineConfig) -> Any:
    """Run a stage, or all of them; stages that train run one at a time. Returns the stage's result."""
    story = {**STORY, "pipeline": pipeline, "refresh": refresh}[stage]
    with turn() if stage in TRAINS else contextlib.nullcontext():
        return story.fn(settings)


def show_registered(plan: StagePlan) -> list[dict[str, Any]] | None:
    """Show the registry's rows as a table of this run and return them; None for a refresh."""
    if plan.stage == "refresh":
        return None
    rows = registered_before(plan.plan)
    create_table_artifact(rows or [], key="verdicts", description="Registered before: nothing had to be done")
    return rows
