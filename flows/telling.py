"""What the monitor tells as events: each alert once; drift when it begins, and again while it lasts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pandas as pd

from cluster.champion import Used
from cluster.home import store
from flows import events
from flows.stage import say
from flows.trained import RetrainPlan
from gpt2.artifact import Artifact, Key
from gpt2.inbox import present
from gpt2.monitor import MonitorConfig

TOLD_WITHIN = pd.Timedelta(days=7)
"""Alerts that began longer before the latest post are on the page, and no event: they are history."""
Facts = dict[str, Any]


def send_events(config: MonitorConfig, model: Used, built: Artifact, page: Path) -> list[str]:
    """Send what was not sent before; returns the sentences of what was sent."""
    told = json.loads(built.file("told.json").read_text())
    recent = pd.Timestamp(told["latest"]) - TOLD_WITHIN
    common = {"monitor": config.name, "version": model.address, "page": str(page)}
    sent = []
    for alert in told["alerts"]:
        if pd.Timestamp(alert["start"]) >= recent:
            facts = {**common, **alert, "window": config.window}
            identity = {"monitor": config.name, "event": events.SENTIMENT, "topic": alert["topic"]}
            sent += once(Key("told", {**identity, "start": alert["start"]}), events.SENTIMENT, model, facts)
    if told["compared"]:
        sent += tell_drift(config, model, told, common)
    return sent


def tell_drift(config: MonitorConfig, model: Used, told: Facts, common: Facts) -> list[str]:
    """Send that posts have drifted: where a measure rises above the threshold, having been below it, and every
    `drift_again_days` while it stays there.

    Each record of what was told, or that nothing drifts any more, names the one before it, so that one that a killed
    run has sent and not kept is the same event when it is sent again.
    """
    last, drifted = latest_record(config, model), sorted(told["drifted"])
    known = last.manifest["spec"]["drifted"] if last else []
    spec = {"version": model.address, "drifted": sorted({*drifted, *known}), "after": last.id if last else ""}
    key = Key(records(config), spec)
    if not drifted:
        if known:  # the next one is another drift
            store().make(Key(key.kind, {**spec, "drifted": []}), lambda out: None)
        return []
    age = present() - pd.Timestamp(last.manifest["created"]) if last else pd.Timedelta(0)
    if set(drifted) <= set(known) and age < pd.Timedelta(days=config.drift_again_days):
        return []

    def facts() -> Facts:
        figures = {"drifted": told["drifted"], "threshold": config.drift_threshold}
        return {**common, **figures, "text": " ".join(told["drift"]), "training": training_of(model)}

    return once(key, events.DRIFT, model, facts)


def records(config: MonitorConfig) -> str:
    """The kind of what this monitor remembers of drift."""
    return f"drift-{config.name}"


def latest_record(config: MonitorConfig, model: Used) -> Artifact | None:
    """Of this version: the one that no other comes after."""
    folder = store().root / records(config)
    found = [store().get(records(config), path.name) for path in sorted(folder.glob("*"))]
    mine = [made for made in found if made and made.manifest["spec"]["version"] == model.address]
    followed = {made.manifest["spec"]["after"] for made in mine}
    return next((made for made in mine if made.id not in followed), None)


def training_of(model: Used) -> Facts:
    """How the model was trained, for who would train it again (`flows.retraining` does, by the version)."""
    try:
        return RetrainPlan.of(model.address).facts()
    except ValueError as error:
        return {"flow": None, "why": str(error)}


def once(key: Key, event: str, model: Used, facts: Facts | Callable[[], Facts]) -> list[str]:
    """Send an event and remember that; [] where it was sent before.

    A run that is killed in between sends it again under the same id, which Prefect takes for the same event.
    """
    if store().find(key):
        return []
    facts = facts() if callable(facts) else facts
    events.of_model(event, model.name, uuid5(NAMESPACE_URL, f"gpt2:{key.id}"), **facts)
    say(f"{event}: {facts['text']}")
    if not events.sent():
        say(f"{event}: Prefect does not take it now; the next run tells it again")
        return []

    def build(out: Path) -> None:
        (out / "facts.json").write_text(json.dumps(facts, indent=1))

    store().make(key, build)
    return [facts["text"]]
