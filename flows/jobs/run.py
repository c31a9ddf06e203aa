"""The form of `gpt2 run` in the Prefect UI: all stages, one of them, or a refresh, with the main settings."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from flows.config import FILES, GATE, MAIN, Files, Gate, Main, PipelineConfig, Preset, changes_of, resolve
from flows.jobs.refresh import refresh
from flows.jobs.refresh_plan import RefreshPlan
from flows.pipeline import STORY, pipeline
from flows.plan import Plan, make_plan, registered_before, run_identity
from flows.runs.ending import HOOKS, carry_out, turn
from flows.runs.prefect_artifacts import called, named, places
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


def settings_of(
    files: Settings, preset: str, main: Settings, gate: Settings, changes: list[str], file: str | None
) -> PipelineConfig:
    """Return the settings of a filled form; raises `InvalidConfig`."""
    filled = [
        change for fields, paths in ((files, FILES), (main, MAIN), (gate, GATE)) for change in changes_of(fields, paths)
    ]
    return resolve(preset, Path(file) if file else None, [*filled, *changes])


def run_name(stage: Stage, preset: str, **filled: Any) -> str:
    """Return what a run is called; a form that is refused later names its preset alone."""
    try:
        sources = settings_of(preset=preset, **filled).corpus.sources
    except ValueError:
        sources = []
    return called(f"{stage} {preset}", places(sources))


@flow(
    name="gpt2",
    flow_run_name=named(run_name),
    task_runner=ThreadPoolTaskRunner(max_workers=8),
    **HOOKS,
)
def run(
    files: Files = Files(),  # noqa: B008 - settings are frozen
    preset: Preset = "laptop",
    main: Main = Main(),  # noqa: B008
    gate: Gate = Gate(),  # noqa: B008
    changes: list[str] = [],  # noqa: B006 - Prefect shows the default in the form
    file: str = "",
    stage: Stage = "pipeline",
) -> Any:
    """Train a GPT-2 of your own from text. Finished work is not repeated.

    Args:
        files: Files of your own, and their columns. Empty fields keep the preset's value, which is a sample.
        preset: Settings to start from: `laptop` takes minutes on two cores, `smoke` is the smallest, the others are
            the published sizes and need GPUs.
        main: The settings that are changed most. Empty fields keep the preset's value.
        gate: Conditions under which a model becomes the champion. Empty fields keep the preset's value.
        changes: Any other settings, each in the form pretrain.optimizer.warmup_steps=20.
        file: A YAML file on the machine of the worker, whose settings override the preset's.
        stage: The part to run: all stages, one stage, or `refresh`, which continues the champion's training on new
            documents.
    """
    return carry_out(
        lambda: StagePlan.of(stage, settings_of(files, preset, main, gate, changes, file)),
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
