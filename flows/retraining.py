"""A registered model is trained again as it was, on its sources as they are now: what drift asks for."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from cluster.lineage import Lineage
from cluster.tracking import end_dead
from flows.config import PipelineConfig
from flows.endings import HOOKS, or_cancelled
from flows.forms import carry_out, duplicate, leaving_in_time
from flows.learner import CHAMPION, final_plan, plan_of, pretrained
from flows.learning import fine_tuned, learned
from flows.new_data import like, look
from flows.plan import Plan, make_plan
from flows.stage import say, without_tracebacks
from flows.summary import registered_before
from flows.trained import LEARNERS, Trained, trained
from flows.turns import claim, turn
from gpt2.artifact import digest


@flow(name="retrain", flow_run_name="retrain-{model}", task_runner=ThreadPoolTaskRunner(max_workers=8), **HOOKS)
def retrain(model: str) -> Any:
    """A registered model is trained again with its own settings, on its sources as they are now: a new version, for
    the gate to judge. Without new data there is none, and the run says so.

    Args:
        model: Which one: models:/NAME/VERSION or models:/NAME@champion.
    """
    without_tracebacks()
    try:
        how = trained(model)
        say(f"{how.version} was trained by {how.flow}; the same is done with its sources as they are now")
        if how.flow in LEARNERS:
            return of_learner(how)
        if how.flow == "pipeline":
            settings = how.pipeline()
            return unchanged(how, make_plan(settings)) or carry_out("pipeline", settings)
        settings = how.pipeline()
        if how.flow == "refresh" and look(settings).nothing() is None:
            return carry_out("refresh", settings)
        base = champion()
        settings = like(base, settings)
        plan = plan_of(settings, base)
        if said := unchanged(how, plan):
            return said
    except ValueError as error:
        return Failed(message=f"refused: {error}")
    return from_champion(how, settings, plan)


def of_learner(how: Trained) -> Any:
    """A file of one's own."""
    config = how.learner()
    plan = final_plan(config, pretrained(config.base))
    return (unchanged(how, plan) if plan else None) or learned(config)


def champion() -> Lineage:
    """The base model that learns; `ValueError` where there is none."""
    base = pretrained(CHAMPION)
    if base is None:
        raise ValueError("gpt2-base has no champion to learn; make one: gpt2 run")
    return base


def unchanged(how: Trained, plan: Plan) -> Any:
    """The end of a run that can make no new version, None of one that can."""
    rows = registered_before(plan)
    if rows is None:
        return None
    [version] = [row["version"] for row in rows if row["model"] == how.name] or ["?"]
    places = how.settings.get("tasks", {}).get(how.task) if how.flow not in LEARNERS else how.settings
    sources = [str((places or {})[what]) for what in ("source", "interactions") if (places or {}).get(what)]
    sources = sources or [str(s) for s in how.settings["corpus"]["sources"]]  # a base model's
    message = (
        f"Nothing to do: {how.name} version {version} was trained with these settings on what {', '.join(sources)} "
        f"hold{'s' if len(sources) == 1 else ''} now, so no new version can come of it; put what has come since there, "
        f"labelled, and run this again"
    )
    say(message)
    return Completed(message=message, data=rows)


def from_champion(how: Trained, settings: PipelineConfig, plan: Plan) -> Any:
    """The base model's champion learns the task anew."""
    end_dead()
    keys = plan.tasks[how.task]
    with claim(f"{how.task}-{digest([keys.registered, keys.examples.id])[:16]}") as holder:
        if holder is not None:
            return duplicate(holder)
        with leaving_in_time(), turn():
            return or_cancelled(lambda: {"registered": fine_tuned(how.task, settings, plan)})
