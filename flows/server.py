"""Prefect's server and worker as services of `gpt2 up`; `prefect.yaml`, registered with a server.

Registered are deployments, work pool and automations.

`gpt2 up` registers at its start. `gpt2 automations WHERE` makes an automation for each of our events, which calls a
webhook or notifies people through one of Prefect's blocks; a second call changes where.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import sys
from importlib.resources import files
from typing import Any
from uuid import UUID

import httpx
import yaml
from prefect.automations import Automation
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.blocks.notifications import MicrosoftTeamsWebhook, SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentScheduleUpdate,
    DeploymentUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import construct_schedule
from prefect.events import AutomationCore, DeploymentTriggerTypes, EventTrigger
from prefect.events.actions import CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import Posture
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import parameter_schema
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessWorker
from pydantic import SecretStr, TypeAdapter

from cluster.home import prefect_login
from cluster.services.databases import Profile, prefect_url
from cluster.services.processes import LOOPBACK, Service, http_answers
from flows.runs.events import EVENTS
from flows.runs.services import SILENCE
from gpt2.store.artifact import digest

BLOCK = "gpt2-webhook"
PAYLOAD = """{"event": {{ event.event | tojson }},
 "id": {{ event.id | string | tojson }},
 "resource": {{ event.resource.id | tojson }},
 "payload": {{ event.payload | tojson }},
 "text": {{ (event.resource.name ~ ": " ~ event.event) | tojson }}}"""
"""The body of a call of the webhook: JSON, with a `text` as chat services read it. An event keeps its `id`."""


SUBJECT = "{{ event.resource.name }}: {{ event.event }}"
BODY = """{{ event.payload.text or event.payload.reasons or event.payload.reason or event.payload.cause }}
{{ event.payload.url }}"""
"""What a notification says: the sentence of the event, and the address of its page."""
CHATS: tuple[tuple[str, type[NotificationBlock]], ...] = (
    (r"https://hooks\.slack(-gov)?\.com/", SlackWebhook),
    (r"https://[^/]*\.(office|azure|powerplatform)\.com[:/]", MicrosoftTeamsWebhook),
)
"""Addresses of chats, and the block that writes to them."""


def create(where: str, events: tuple[str, ...] = EVENTS) -> list[Automation]:
    """Create an automation per event, in place of those of an earlier call; return them.

    `where` is an address that gets `PAYLOAD`, the address of a Slack or Teams webhook, or a notification block of the
    server as TYPE/NAME, such as sendgrid-email/ops. Raises `ValueError` for another, and without a permanent server
    that answers.
    """
    block = re.fullmatch(r"[a-z0-9-]+/[\w .-]+", where)
    if not block and not where.startswith(("http://", "https://")):
        raise ValueError(
            f"{where!r}: is not an address; give one such as https://example.org/hook, or a notification block of "
            f"Prefect as TYPE/NAME, such as sendgrid-email/ops"
        )
    if not PREFECT_API_URL.value():
        raise ValueError("automations need a permanent Prefect server; start one and set PREFECT_API_URL")
    chat = next((kind for pattern, kind in CHATS if re.match(pattern, where)), None)
    action: Any
    try:
        if block or chat:
            document = existing(where) if block else chat(url=SecretStr(where)).save(BLOCK, overwrite=True)  # type: ignore
            action = SendNotification(block_document_id=document, subject=SUBJECT, body=BODY)
        else:
            document = Webhook(method="POST", url=where).save(BLOCK, overwrite=True)
            action = CallWebhook(block_document_id=document, payload=PAYLOAD)
        return [replace(event, action) for event in events]
    except httpx.HTTPError as error:
        remedy = "look at its log; if it asks for a login, set PREFECT_API_AUTH_STRING=USER:PASSWORD"
        raise ValueError(f"PREFECT_API_URL={PREFECT_API_URL.value()}: {error}; {remedy}") from None


def existing(address: str) -> UUID:
    """Return the id of the server's notification block at TYPE/NAME; raises `ValueError` if there is none."""
    try:
        block = Block.load(address)
    except ValueError:
        block = None
    if not isinstance(block, NotificationBlock):
        raise ValueError(f"{address}: is no notification block of the server; make it on Prefect's page Blocks")
    return block._block_document_id  # type: ignore[return-value]


def replace(event: str, action: Any) -> Automation:
    """Make the automation of an event anew."""
    name = f"{event} calls {BLOCK}"
    with contextlib.suppress(ValueError):  # there is none
        Automation.read(name=name).delete()
    return Automation(
        name=name,
        description=f"Tells {'people' if isinstance(action, SendNotification) else 'a webhook'} when {event} happens",
        trigger=EventTrigger(expect={event}, posture=Posture.Reactive, threshold=1),
        actions=[action],
    ).create()


LISTED = files("flows") / "prefect.yaml"
POOL = "gpt2"
AT_ONCE = 3
"""Default limit of flow runs at the same time. Of runs that train, one works and the others wait or end
(`flows.runs.ending`)."""
SILENT = 75
"""Seconds without a heartbeat, which is sent every 30 s, after which a run counts as dead."""


def register(at_once: int | None = None) -> list[str]:
    """Register the work pool, the deployments and the automation for dead runs; return the deployments' names.

    Only changed deployments are updated; the automation is always made anew. `at_once` sets the pool's limit; None
    keeps it, or sets `AT_ONCE` if there is none.

    A deployment's schedules keep their ids and whether they are enabled, so no scheduled run happens twice.
    """
    os.environ.setdefault("GPT2_WORKING_DIR", os.getcwd())
    with get_client(sync_client=True) as client:
        make_pool(client, at_once)
        crash_the_silent(client)
        return [register_one(client, filled(entry)) for entry in read()]


def read() -> list[dict[str, Any]]:
    """Return the entries of `prefect.yaml`."""
    return yaml.safe_load(LISTED.read_text())["deployments"]


def filled(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry with its variables filled in, except those of triggers, which Prefect fills in when they fire."""
    triggers = {"triggers": entry["triggers"]} if "triggers" in entry else {}
    return {**apply_values({k: v for k, v in entry.items() if k not in triggers}, {}), **triggers}


def make_pool(client: SyncPrefectClient, at_once: int | None) -> None:
    """Create the work pool, or update its limit."""
    limit = at_once or AT_ONCE
    try:
        pool = client.read_work_pool(POOL)
        if pool.concurrency_limit is None or at_once not in (None, pool.concurrency_limit):
            client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=limit))
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        description = "Runs as processes of the worker that `gpt2 up` starts."
        client.create_work_pool(
            WorkPoolCreate(
                name=POOL,
                type="process",
                description=description,
                concurrency_limit=limit,
                base_job_template=template,
            )
        )


def crash_the_silent(client: SyncPrefectClient) -> None:
    """Make the automation that marks a run without heartbeats as crashed, so that it frees its place and can run
    again."""
    name = "gpt2: a run without a heartbeat has crashed"
    beat = "prefect.flow-run.heartbeat"
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Duplicate")}
    trigger = EventTrigger(
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        for_each={"prefect.resource.id"},
        after={beat},
        expect={beat, *ends},
        posture=Posture.Proactive,
        threshold=1,  # it fires if fewer came; with 0 it never fires
        within=datetime.timedelta(seconds=SILENT),
    )
    crash = ChangeFlowRunState(state=StateType.CRASHED, message=SILENCE)
    automate(client, AutomationCore(name=name, description=SILENCE, trigger=trigger, actions=[crash]))


def automate(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Replace the automation of the same name; a disabled one stays disabled."""
    for old in client.read_automations_by_name(automation.name):
        automation.enabled = automation.enabled and old.enabled
        client.delete_automation(old.id)
    client.create_automation(automation)


def register_one(client: SyncPrefectClient, entry: dict[str, Any]) -> str:
    """Create or update one deployment; return its name. Repeating it with the same entry changes nothing."""
    flow = load_flow_from_entrypoint(entry["entrypoint"])
    name, schema = f"{flow.name}/{entry['name']}", parameter_schema(flow).model_dump(exclude_unset=True)
    pool, version = entry["work_pool"], digest([entry, schema])[:12]
    schedules = [schedule(item) for item in entry.get("schedules", [])]
    fields: dict[str, Any] = {
        "version": version,
        "description": entry.get("description"),
        "tags": entry.get("tags", []),
        "parameters": entry.get("parameters", {}),
        "entrypoint": entry["entrypoint"],
        "work_pool_name": pool["name"],
        "job_variables": pool.get("job_variables", {}),
        "parameter_openapi_schema": schema,
        "enforce_parameter_schema": True,
    }
    try:
        there = client.read_deployment_by_name(name)
    except ObjectNotFound:
        flow_id = client.create_flow_from_name(flow.name)
        made = client.create_deployment(flow_id, entry["name"], schedules=schedules, **fields)
        trigger(client, made, entry)
        return name
    if there.version != version:
        enabled = {s.slug: s.active for s in there.schedules}
        kept = [update_of(s, enabled.get(s.slug, s.active)) for s in schedules]
        client.update_deployment(there.id, DeploymentUpdate(schedules=kept, **fields))
        trigger(client, there.id, entry)
    return name


def trigger(client: SyncPrefectClient, deployment: UUID, entry: dict[str, Any]) -> None:
    """Make the automations that run a deployment at events."""
    for item in entry.get("triggers", []):
        wanted: Any = TypeAdapter(DeploymentTriggerTypes).validate_python(item)
        wanted.set_deployment_id(deployment)
        automate(client, wanted.as_automation())


def update_of(new: DeploymentScheduleCreate, active: bool) -> DeploymentScheduleUpdate:
    """Return the update of a schedule. The server finds it by its slug and keeps its id."""
    return DeploymentScheduleUpdate(schedule=new.schedule, slug=new.slug, parameters=new.parameters, active=active)


def schedule(item: dict[str, Any]) -> DeploymentScheduleCreate:
    """Return a schedule of `prefect.yaml`. Its slug identifies it over repeated registrations."""
    when = construct_schedule(
        interval=item.get("interval"), cron=item.get("cron"), rrule=item.get("rrule"), timezone=item.get("timezone")
    )
    return DeploymentScheduleCreate(
        schedule=when, slug=item["slug"], active=item.get("active", False), parameters=item.get("parameters", {})
    )


WORKER = "gpt2-up"
POOL = "gpt2"


def server(port: int, profile: Profile = "sqlite") -> Service:
    """Return the service of Prefect's API, UI and scheduler, which requires the home's login."""
    address = f"http://{LOOPBACK}:{port}"
    environment = {
        "PREFECT_SERVER_API_AUTH_STRING": prefect_login(),
        "PREFECT_API_AUTH_STRING": prefect_login(),
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"{address},http://localhost:{port}",
        "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "60",
        "PREFECT_UI_API_URL": f"{address}/api",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }
    if profile == "postgres":
        environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = prefect_url()
    return Service(
        "prefect",
        "Prefect",
        (sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)),
        address,
        lambda: http_answers(f"{address}/api/ready"),
        environment=environment,
        ports={"--prefect-port": port},
    )


def worker(at_once: int | None) -> Service:
    """Return the service of the worker, which starts the runs of UI and schedules as processes, at most `at_once` at a
    time."""
    command = ("worker", "start", "--pool", POOL, "--type", "process", "--name", WORKER)
    limit = ("--limit", str(at_once)) if at_once else ()
    return Service(
        "worker",
        "Prefect's worker",
        (sys.executable, "-m", "prefect", *command, *limit),
        f"pool {POOL!r}",
        worker_is_online,
        environment={
            "PREFECT_WORKER_ENABLE_CANCELLATION": "true",
            "PREFECT_RUNNER_CRASH_ON_CANCELLATION_FAILURE": "true",
            "PREFECT_WORKER_WEBSERVER_HOST": LOOPBACK,
            "PREFECT_WORKER_QUERY_SECONDS": "5",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
        },
        works=("prefect.engine", "prefect.flow_engine"),
    )


def worker_is_online() -> bool:
    """Return whether the Prefect server reports our worker as online."""
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            workers = client.read_workers_for_work_pool(POOL)
    except (httpx.HTTPError, OSError):
        return False
    return any(w.name == WORKER and w.status == "ONLINE" for w in workers)
