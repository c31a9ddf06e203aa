"""Example automations: each of our events calls a webhook. `python -m flows.automations URL` makes them.

They are made on the server that `PREFECT_API_URL` names, once: a second call changes the address.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import EventTrigger, Posture

from flows.events import EVENTS

BLOCK = "gpt2-webhook"
PAYLOAD = """{"event": {{ event.event | tojson }},
 "resource": {{ event.resource.id | tojson }},
 "payload": {{ event.payload | tojson }},
 "text": {{ (event.resource.name ~ ": " ~ event.event) | tojson }}}"""
"""What the webhook gets: JSON, with a `text` as chat services read it."""


def create(url: str, events: tuple[str, ...] = EVENTS) -> list[Automation]:
    """An automation per event that posts `PAYLOAD` to `url`; those of an earlier call are replaced."""
    block: Any = Webhook(method="POST", url=url).save(BLOCK, overwrite=True)
    return [replace(event, block) for event in events]


def replace(event: str, block: Any) -> Automation:
    name = f"{event} calls {BLOCK}"
    with contextlib.suppress(ValueError):  # there is none
        Automation.read(name=name).delete()
    return Automation(
        name=name,
        description=f"Posts to the address in the block {BLOCK} when {event} happens",
        trigger=EventTrigger(expect={event}, posture=Posture.Reactive, threshold=1),
        actions=[CallWebhook(block_document_id=block, payload=PAYLOAD)],
    ).create()


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].startswith(("http://", "https://")):
        sys.exit("Say where to: python -m flows.automations https://example.org/hook")
    for automation in create(sys.argv[1]):
        print(automation.name)
