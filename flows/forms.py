"""What the Prefect UI runs: `gpt2 run` as a form, with its choices and the main settings of the one schema."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.states import Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from cluster.tracking import end_dead
from flows.config import PipelineConfig, resolve
from flows.endings import HOOKS, or_cancelled
from flows.fields import GATE, MAIN, Gate, Main, Preset, changes_of
from flows.new_data import look
from flows.pipeline import STORY, pipeline
from flows.plan import Plan, make_plan
from flows.refresh import refresh
from flows.stage import say, without_tracebacks
from flows.summary import registered_before
from flows.turns import claim, turn
from gpt2.artifact import digest
from gpt2.config import Settings

LEAVING_SECONDS = 25
TRAINS = ("pipeline", "pretrain", "finetune", "refresh")
Stage = Literal["pipeline", "tokenize", "pretrain", "finetune", "evaluate", "register", "refresh"]


def settings_of(preset: str, main: Settings, gate: Settings, changes: list[str], file: str | None) -> PipelineConfig:
    """The settings that a filled form stands for; `InvalidConfig` says what is wrong."""
    return resolve(preset, Path(file) if file else None, [*changes_of(main, MAIN), *changes_of(gate, GATE), *changes])


@contextlib.contextmanager
def leaving_in_time() -> Iterator[None]:
    """A SIGTERM, whoever handles it, ends this process in `LEAVING_SECONDS` at the latest: threads may be at work that
    nothing can interrupt, and Prefect would wait a little longer than was promised."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, signalled = socket.socketpair()
    signalled.setblocking(False)

    def watch() -> None:
        while number := ours.recv(1):
            if number[0] == signal.SIGTERM:
                time.sleep(LEAVING_SECONDS)
                os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    before = signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signalled.close()


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
    """Text becomes a GPT-2 of your own. What is done already is not done again.

    Args:
        stage: The part to run: everything, one stage of it, or `refresh`: the champion goes on with new documents.
        preset: Settings to start from: `laptop` takes minutes on two cores, `smoke` is the smallest, the others are
            the published sizes and need GPUs.
        main: Settings that are changed most; what is left empty is as in the preset.
        gate: What a model must show to become the champion; what is left empty is as in the preset.
        changes: Any other settings, each as in pretrain.optimizer.warmup_steps=20.
        file: A YAML file of settings on the machine of the worker, that go over the preset's.
    """
    without_tracebacks()
    try:
        settings = settings_of(preset, main, gate, changes, file)
    except ValueError as error:
        return Failed(message=f"refused: {error}")
    return carry_out(stage, settings)


def carry_out(stage: Stage, settings: PipelineConfig) -> Any:
    """Do what is new, one training at a time, equal runs once; the state or the result that the run ends with."""
    try:
        plan = make_plan(settings)
        nothing_new = look(settings).nothing() if stage == "refresh" else None
    except ValueError as error:
        return Failed(message=f"refused: {error}")
    if stage == "pipeline" and (rows := registered_before(plan)):
        create_table_artifact(rows, key="verdicts", description="Registered before: nothing had to be done")
        return Completed(message="Nothing to do: every stage was done before.", data=rows)
    if nothing_new:
        return Completed(message=f"Nothing to do: {nothing_new}.")
    end_dead()
    with claim(identity(stage, plan)) as holder:
        if holder is not None:
            return duplicate(holder)
        story = {**STORY, "pipeline": pipeline, "refresh": refresh}[stage]
        with leaving_in_time(), turn() if stage in TRAINS else contextlib.nullcontext():
            return or_cancelled(lambda: story.fn(settings))


def identity(stage: str, plan: Plan) -> str:
    """The same for runs that would make the same."""
    return digest([stage, *(key.id for _, _, key in plan.by_stage())])[:16]


def duplicate(holder: dict[str, Any]) -> State:
    """The end of a run whose work another run is doing."""
    if holder["url"]:
        create_link_artifact(link=holder["url"], link_text=f"Run {holder['run']}", key="the-run-that-does-it")
    message = f"{holder['run']} is doing the same; this run leaves it to that one. {holder['url']}".strip()
    say(message)
    return Completed(name="Duplicate", message=message)
