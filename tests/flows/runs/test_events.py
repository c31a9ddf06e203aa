"""An event of ours reaches whoever waits for it: a real Prefect server, an automation, a webhook on loopback."""

import json
import os
import queue
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows.runs import events
from flows.server import create
from tests.services import prefect_server

ROOT = Path(__file__).parents[3]


@pytest.fixture
def receiver():
    """The address of a webhook, and what it gets."""
    got: queue.Queue[dict] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got
    server.shutdown()


@pytest.mark.slow
def test_each_event_calls_the_webhook_of_its_automation(tmp_path, receiver):
    url, got = receiver
    with prefect_server(tmp_path) as port:
        environment = {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PYTHONPATH": str(ROOT)}

        def python(*words: str) -> str:
            command = [sys.executable, *words]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout

        python("-m", "flows.cli", "automations", "http://127.0.0.1:9/old")
        made = python(
            "-m", "flows.cli", "automations", url
        ).splitlines()  # again: the address is changed, none is doubled
        assert len(made) == len(events.EVENTS) == 6
        python("-c", TELL)
        found = {g["event"]: g for g in (got.get(timeout=60) for _ in made)}
    assert set(found) == set(events.EVENTS)
    promoted = found["gpt2.model.promoted"]
    assert promoted["resource"] == "gpt2.model.gpt2-sentiment"
    assert promoted["payload"] == {
        "version": 3,
        "reasons": 'better than "always neutral"',
        "url": "http://x",
    }
    assert promoted["text"] == "gpt2-sentiment: gpt2.model.promoted"
    assert found["gpt2.training.restarted"]["resource"] == "gpt2.training.base"
    assert found["gpt2.training.restarted"]["payload"] == {"cause": "worker 1: its process died"}
    assert got.empty()


@pytest.mark.slow
def test_what_was_sent_is_not_sent_again_after_prefect_was_restarted(tmp_path, receiver):
    """Runs are killed before they record what they sent, and the server is killed too."""
    url, got = receiver

    def python(port: int, *words: str) -> None:
        environment = {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, *words], capture_output=True, check=False, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]

    for first in (True, False, False):
        with prefect_server(tmp_path) as port:
            if first:
                python(port, "-m", "flows.cli", "automations", url)
            python(port, "-c", ONCE)
            for _ in range(4 if first else 1):
                event = got.get(timeout=60)
            assert first or event["event"] == "gpt2.gate.refused"  # this one was sent each time
            assert got.empty()


@pytest.mark.slow
def test_drift_starts_the_retraining_of_its_version_and_what_was_switched_off_stays_off(tmp_path):
    with prefect_server(tmp_path) as port:
        environment = {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", DRIFT], capture_output=True, text=True, check=False, env=environment, timeout=200
        )
    assert done.returncode == 0 and "started" in done.stdout, done.stderr[-3000:]


@pytest.mark.slow
def test_people_are_told_through_a_block_of_prefect_with_a_link_to_the_page(tmp_path, receiver):
    url, got = receiver
    with prefect_server(tmp_path) as port:
        environment = {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", BLOCKS, url],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        told, refused = sorted(
            (got.get(timeout=60) for _ in range(2)), key=lambda message: message["subject"], reverse=True
        )
    assert told["subject"] == "gpt2-sentiment: gpt2.sentiment.alert"
    text, link = told["body"].splitlines()
    assert text == '@united: "61 of 90" posts are negative' and "/runs/flow-run/" in link
    assert refused["body"].splitlines() == ["worse", "http://x"]


def test_automations_need_a_server_and_an_address():
    with pytest.raises(ValueError, match=r"'example\.org': is not an address"):
        create("example.org")
    with pytest.raises(ValueError, match="set PREFECT_API_URL"):
        create("https://example.org/hook")


TELL = """
import time
from prefect.events.worker import EventsWorker
from flows.runs import events
from flows.stages.training import announcer
emit = lambda event, **facts: events.emit_for_model(event, "gpt2-sentiment", **facts)
emit(events.PROMOTED, version=3, reasons='better than "always neutral"', url="http://x")
emit(events.REFUSED, version=4, reasons="worse", url="http://x")
announce = announcer("base")
announce({"event": "failure", "time": 1.0, "workers": {"0": "of an earlier launch"}})
announce({"event": "failure", "time": time.time(), "workers": {"1": "its process died"}})
announce({"event": "failure", "time": time.time(), "workers": {"0": "lost its connection to another worker"}})
announce({"event": "begin", "time": time.time(), "step": 4})
events.emit_for_training(events.BUDGET, "base", reason="budget.max_seconds=1 is used up")
emit(events.SENTIMENT, reason="more complaints")
emit(events.DRIFT, drifted={"tokens": 0.4})
assert events.wait_until_sent()
EventsWorker.instance().drain()
"""

BLOCKS = """
import sys
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from flows.runs import events
from flows.server import create, existing
from prefect.automations import Automation
said = {"subject": "{{subject}}", "body": "{{body}}"}
CustomWebhookNotificationBlock(name="ops", url=sys.argv[1], json_data=said).save("ops")
create("custom-webhook/ops")
try:
    create("custom-webhook/nobody")
except ValueError as error:
    assert "make it on Prefect's page Blocks" in str(error)
@flow
def job():
    events.emit_for_model(events.SENTIMENT, "gpt2-sentiment", text='@united: "61 of 90" posts are negative')
    events.emit_for_model(events.REFUSED, "gpt2-sentiment", version=4, reasons="worse", url="http://x")
    assert events.wait_until_sent()
job()
for address, kind in (("https://hooks.slack.com/services/T00000000/B00000000/x", "slack-webhook"),
                      ("https://example.webhook.office.com/webhookb2/x", "ms-teams-webhook")):
    create(address, (events.DRIFT,))
    [action] = Automation.read(name=f"{events.DRIFT} calls gpt2-webhook").actions
    assert action.type == "send-notification" and action.block_document_id == existing(f"{kind}/gpt2-webhook")
"""

ONCE = """
import time
from prefect.client.orchestration import get_client
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.events.worker import EventsWorker
from flows.runs import events
for event in (events.PROMOTED, events.SENTIMENT, events.DRIFT):
    assert events.emit_once(event, "gpt2-mood", f"{event} of March")
events.emit_for_model(events.REFUSED, "gpt2-mood")
assert events.wait_until_sent()
EventsWorker.instance().drain()
kept = EventFilter(event=EventNameFilter(prefix=["gpt2."]))
with get_client(sync_client=True) as client:
    deadline = time.monotonic() + 60
    # The server writes what came every five seconds.
    while len({e.event for e in client.read_events(kept, limit=50).events}) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.5)
"""

DRIFT = """
import time
from prefect.client.orchestration import get_client
from flows.runs import events
from flows import server as deployments
names = deployments.register()
assert {"monitor-sentiment/monitor-sentiment", "recommend/recommend"} <= set(names), names
NAME = "gpt2: drift asks for a training"
with get_client(sync_client=True) as client:
    [made] = client.read_automations_by_name(NAME)
    events.emit_for_model(events.DRIFT, "gpt2-sentiment", version="models:/gpt2-sentiment/3", drifted={"tokens": 0.4})
    assert events.wait_until_sent()
    deployment = client.read_deployment_by_name("retrain/retrain")
    deadline = time.monotonic() + 90
    while not (runs := [r for r in client.read_flow_runs() if r.deployment_id == deployment.id]):
        assert time.monotonic() < deadline, "no run"
        time.sleep(0.5)
    assert len(runs) == 1 and runs[0].parameters == {"model": "models:/gpt2-sentiment/3"}
    client.pause_automation(made.id)
    [entry] = [e for e in deployments.read() if e["name"] == "retrain"]
    deployments.register_one(client, entry | {"description": "another"})
    [again] = client.read_automations_by_name(NAME)
    assert not again.enabled
    [entry] = [e for e in deployments.read() if e["name"] == "pipeline"]
    deployment = client.read_deployment_by_name("gpt2/pipeline")
    [schedule] = deployment.schedules
    client.update_deployment_schedule(deployment.id, schedule.id, active=True)
    deployments.register_one(client, entry | {"description": "another"})  # what was switched stays, under its ids
    there = client.read_deployment_by_name("gpt2/pipeline")
    assert there.description == "another" and [(s.id, s.active) for s in there.schedules] == [(schedule.id, True)]
    print("started")
"""
