"""Example automations: each of our events calls a webhook. `gpt2 automations URL` makes them, on the server that
`PREFECT_API_URL` names; a second call changes the address."""

from __future__ import annotations

import contextlib
from typing import Any

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.events import EventTrigger
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import Posture
from prefect.settings import PREFECT_API_URL

from flows.events import EVENTS

BLOCK = "gpt2-webhook"
PAYLOAD = """{"event": {{ event.event | tojson }},
 "resource": {{ event.resource.id | tojson }},
 "payload": {{ event.payload | tojson }},
 "text": {{ (event.resource.name ~ ": " ~ event.event) | tojson }}}"""
"""What the webhook gets: JSON, with a `text` as chat services read it."""


def create(url: str, events: tuple[str, ...] = EVENTS) -> list[Automation]:
    """An automation per event that posts `PAYLOAD` to `url`; those of an earlier call are replaced. `ValueError` for
    what is no address, and without a server that lasts."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is not an address; give one such as https://example.org/hook")
    if not PREFECT_API_URL.value():
        raise ValueError("automations need a Prefect server that lasts; start one and set PREFECT_API_URL")
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
