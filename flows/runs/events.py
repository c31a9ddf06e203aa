"""Prefect events for automations. Their names and resources are an interface and do not change.

| event | resource (`prefect.resource.id`) | when | payload |
|---|---|---|---|
| `gpt2.model.promoted` | `gpt2.model.NAME` | the gate made a version the champion | version, reasons, url |
| `gpt2.gate.refused` | `gpt2.model.NAME` | the gate refused a version | version, reasons, url |
| `gpt2.training.restarted` | `gpt2.training.NAME` | workers failed and start again | cause |
| `gpt2.budget.exceeded` | `gpt2.training.NAME` | a budget stopped a training after a checkpoint | reason |
| `gpt2.sentiment.alert` | `gpt2.model.NAME` | a topic's share surges | topic, start, share, expected, text, … |
| `gpt2.sentiment.drift` | `gpt2.model.NAME` | posts unlike the training data | version, drifted, training, text, … |

Each has the `url` of a page: that of the version in MLflow, or of the run in Prefect. `gpt2 automations WHERE` makes an
automation for each.
"""

from __future__ import annotations

import threading
from typing import Any, Literal
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.events.filters import EventFilter, EventIDFilter
from prefect.events.worker import EventsWorker
from prefect.runtime import flow_run

from flows.runs.prefect_artifacts import AWAY, patiently

PROMOTED: Literal["gpt2.model.promoted"] = "gpt2.model.promoted"
REFUSED: Literal["gpt2.gate.refused"] = "gpt2.gate.refused"
RESTARTED: Literal["gpt2.training.restarted"] = "gpt2.training.restarted"
BUDGET: Literal["gpt2.budget.exceeded"] = "gpt2.budget.exceeded"
SENTIMENT: Literal["gpt2.sentiment.alert"] = "gpt2.sentiment.alert"
DRIFT: Literal["gpt2.sentiment.drift"] = "gpt2.sentiment.drift"
EVENTS = (PROMOTED, REFUSED, RESTARTED, BUDGET, SENTIMENT, DRIFT)


def emit_for_model(event: str, name: str, id: UUID | None = None, **payload: Any) -> None:
    """Emit an event on a registered model, such as `gpt2-sentiment`."""
    emit(event, f"gpt2.model.{name}", name, payload, id)


def emit_once(event: str, name: str, identity: str, **payload: Any) -> bool:
    """Emit an event on a registered model, unless Prefect's server has it; return whether the server has it now.

    The caller keeps a record, so as not to ask again; if it is killed before, the server is asked. The id alone does
    not help: once restarted, or after 30 minutes, the server hands an event that comes again to automations again.
    """
    id = uuid5(NAMESPACE_URL, f"gpt2:{identity}")

    def received() -> bool:
        with get_client(sync_client=True) as client:
            return bool(client.read_events(EventFilter(id=EventIDFilter(id=[id])), limit=1).events)

    try:
        if patiently(received):
            return True
    except AWAY:
        return False
    emit_for_model(event, name, id, **payload)
    return wait_until_sent()


def emit_for_training(event: str, name: str, **payload: Any) -> None:
    """Emit an event on a training, such as `base`."""
    emit(event, f"gpt2.training.{name}", name, payload)


def emit(event: str, resource: str, name: str, payload: dict[str, Any], id: UUID | None = None) -> None:
    """Hand an event to Prefect's thread, which sends it in the background."""
    if "url" not in payload and (url := flow_run.ui_url):
        payload = {**payload, "url": url}
    emit_event(event, {"prefect.resource.id": resource, "prefect.resource.name": name}, payload=payload, id=id)


def wait_until_sent(seconds: float = 120) -> bool:
    """Wait until all emitted events are sent; return False if the server does not accept them in time."""
    worker = EventsWorker.instance()
    waiting = threading.Thread(target=worker.wait_until_empty, daemon=True)
    waiting.start()
    waiting.join(seconds)
    return not waiting.is_alive()
