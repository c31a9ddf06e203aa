"""A registered model is trained again as it was, on its sources as they are now: what drift asks for."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.endings import HOOKS, carry_out
from flows.forms import run_stage
from flows.learning import fine_tuned, in_turn
from flows.stage import say
from flows.trained import RetrainPlan
from flows.turns import turn


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
