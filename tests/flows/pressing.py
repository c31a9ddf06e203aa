"""Forms of Prefect's UI, filled in and sent by a browser as an analyst does it."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from prefect.client.schemas.filters import FlowRunFilter, LogFilter

from tests.flows.browser import Browser
from tests.flows.running import Up

FLOWS = {"refresh": "gpt2", "pipeline": "gpt2"}
"""The flow of a deployment that has another name."""


def pictures(up: Up) -> Path:
    """Where screenshots stay: the folder that GPT2_SCREENSHOTS names, if any."""
    shots = Path(os.environ.get("GPT2_SCREENSHOTS") or up.folder / "shots")
    shots.mkdir(exist_ok=True)
    return shots


def log_in(up: Up, page: Browser, picture: Path | None = None) -> None:
    """From Prefect's login to the deployments."""
    page.open(f"http://127.0.0.1:{up.prefect}/deployments")
    page.until_text("Login")
    if picture:
        page.screenshot(picture)
    page.click("input")
    page.type(up.login)
    page.click("button", "Login")
    page.until_text("pipeline")


def form(up: Up, page: Browser, deployment: str) -> str:
    """Open a deployment's form; the deployment's id."""
    with up.client as client:
        id = str(client.read_deployment_by_name(f"{FLOWS.get(deployment, deployment)}/{deployment}").id)
    page.open(f"http://127.0.0.1:{up.prefect}/deployments/deployment/{id}/run")
    page.until(lambda: page.script("!!document.querySelector('button[type=submit]')"), f"{deployment}'s form")
    return id


def sent(up: Up, page: Browser, deployment: str):
    """Press the form's button; the run."""

    def left():
        return not page.script("location.href").endswith("/run")

    for _ in range(3):  # under load the page can lose a press
        page.click("button[type=submit]")
        with contextlib.suppress(AssertionError):
            page.until(left, "a run", 60)
            break
    page.until(left, "a run", 1)
    with up.client as client:
        [newest] = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(deployment_id={"any_": [deployment]}),
            sort="EXPECTED_START_TIME_DESC",
            limit=1,
        )
    return newest


def refused(page: Browser, told: str) -> None:
    """Press the form's button; it says what is wrong."""
    for _ in range(3):  # as in `sent`
        page.click("button[type=submit]")
        with contextlib.suppress(AssertionError):
            page.until_text(told, seconds=30)
            break
    page.until_text(told, 1)


def press(
    up: Up, page: Browser, deployment: str, *choices: str, changes: Sequence[str] = (), ends="COMPLETED", **texts: str
):
    """Fill a deployment's form, send it, and wait for the end of its run, which is looked at; the run.

    `choices` are taken in the lists that have them; texts go into the fields of those labels, and `changes` into the
    list of that label.
    """
    id = form(up, page, deployment)
    for choice in choices:
        page.until(lambda: page.script("!!document.querySelector('select')"), "choices")
        page.choose(choice)
    for label, text in texts.items():
        page.fill(label.replace("_", " "), text)
    page.add("changes" if deployment in FLOWS else "Changes", list(changes))
    name = f"form-{deployment}{'' if ends == 'COMPLETED' else '-' + ends.lower()}"
    page.screenshot(pictures(up) / f"{name}.png")
    ended = up.until_ended(str(sent(up, page, id).id), 400)
    page.open(f"http://127.0.0.1:{up.prefect}/runs/flow-run/{ended.id}")
    page.until_text(ended.state.name)
    time.sleep(2)
    page.screenshot(pictures(up) / f"{name}-run.png")
    assert ended.state.type.value == ends, (deployment, ended.state, ended.parameters)
    with up.client as client:
        said = [log.message for log in client.read_logs(LogFilter(flow_run_id={"any_": [ended.id]}), limit=200)]
    assert said and not any("Traceback" in line or "unexpected" in line for line in said), said
    return ended
