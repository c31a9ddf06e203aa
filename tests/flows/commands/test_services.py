"""`gpt2 up` as an operator and an analyst use it: real servers, a real worker, a real browser."""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.sorting import LogSort
from prefect.states import Cancelling, Crashed

from flows.runs.services import LIVES, SILENCE
from tests.flows import browser
from tests.flows.pressing import form, log_in, pictures, press, refused, sent
from tests.flows.running import Up, answer, basic
from tests.flows.strangers import STRANGERS, changes, everything, listeners, speaks_http

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def up(tmp_path_factory, small_changes):
    up = Up(tmp_path_factory.mktemp("up"), small_changes)
    try:
        up.said = up.gpt2("up", "--detach", *up.options)
        yield up
    finally:
        up.gpt2("down", code=None)
    assert not up.processes()


LONG = ("pretrain.steps=4000", "pretrain.epochs=10000", "pretrain.checkpoint_every=2", "pretrain.seed=5")


def test_it_says_where_everything_is(up):
    for port in (up.prefect, up.mlflow, up.dashboard):
        assert f"http://127.0.0.1:{port}" in up.said
    assert "gpt2 down" in up.said and "Custom run" in up.said and "Traceback" not in up.said
    assert "answers" in up.gpt2("status")


def test_twice_or_on_used_ports_is_refused_in_a_sentence(up):
    assert "is running already" in up.gpt2("up", *up.options, code=2)
    assert "is running already" in up.gpt2("up", "--detach", code=2)
    said = up.gpt2("up", *up.options, code=2, GPT2_HOME=str(up.folder / "other"))
    assert f"--ray-port={up.ray} of Ray can't be used" in said and "choose another with --ray-port" in said
    said = up.gpt2("up", code=2, GPT2_HOME=str(up.folder / "other"), PREFECT_API_URL="http://127.0.0.1:9/api")
    assert "PREFECT_API_URL=http://127.0.0.1:9/api does not answer" in said
    assert "running" in up.gpt2("clean", "--yes", code=2)
    assert "answers" in up.gpt2("status")


def test_every_listener_is_on_loopback(up):
    found = listeners(up.processes())
    assert len(found) > 8
    assert all(ip.removeprefix("::ffff:").startswith("127.") for ip, _ in found), found


def test_nothing_is_changed_without_credentials_or_from_elsewhere(up):
    """Each listener that speaks HTTP gets each request that would change something, from strangers of each kind."""
    before = everything(up)
    ports = sorted({port for _, port in listeners(up.processes()) if speaks_http(port)})
    assert {up.prefect, up.mlflow, up.dashboard} < set(ports)
    asked = 0
    for port in ports:
        for method, path, data in changes(up.folder / "owned"):
            for headers in STRANGERS:
                code = answer(f"http://127.0.0.1:{port}{path}", data, method, **headers)
                assert code >= 400, (port, method, path, headers, code)
                asked += 1
    stranger = subprocess.run(
        [sys.executable, "-c", f"import ray; ray.init('127.0.0.1:{up.ray}'); print('in')"],
        env=up.environment | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert stranger.returncode and "in" not in stranger.stdout.split()
    assert everything(up) == before and not (up.folder / "owned").exists()
    print(f"{asked} requests to {len(ports)} listeners were refused")


def test_a_page_of_another_site_changes_nothing_with_the_right_login_either(up):
    """As a browser that knows the login would send it."""
    before = everything(up)
    prefect, mlflow = basic(up.login), basic(f"gpt2:{up.secret('mlflow-password')}")
    mine = f"http://127.0.0.1:{up.prefect}/api/variables/"
    made = {"name": "made_by_a_stranger", "value": "1"}
    assert answer(mine, made, Authorization=prefect, Origin="http://evil.example") == 403  # no CSRF token
    create = f"http://127.0.0.1:{up.mlflow}/api/2.0/mlflow/experiments/create"
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        assert answer(create, {"name": "evil"}, Authorization=mlflow, **headers) == 403
    assert everything(up) == before
    assert answer(create, {"name": "mine"}, Authorization=mlflow) == 200  # so the requests were right
    assert everything(up) != before


def test_wrong_values_are_refused(up):
    with pytest.raises(Exception, match="steps"):
        up.press("pretrain", main={"steps": -3})
    with pytest.raises(Exception, match="preset"):
        up.press("pretrain", preset="laptpo")
    ended = up.until_ended(up.press("pipeline", "pretrain.stepz=4"))
    assert ended.state.type.value == "FAILED"
    assert "pretrain.stepz: there is no such setting; did you mean 'steps'?" in ended.state.message


def test_ten_triggers_make_one_training(up):
    ids = [up.press("pipeline") for _ in range(10)]
    runs = [up.until_ended(id, 900) for id in ids]
    assert {r.state.type.value for r in runs} == {"COMPLETED"}, [r.state for r in runs]
    did = [r for r in runs if r.state.name == "Completed" and not (r.state.message or "").startswith("Nothing")]
    assert len(did) == 1
    for run in runs:
        if run.state.name == "Duplicate":
            assert f"/flow-run/{did[0].id}" in run.state.message
    assert up.mlflow_runs("pretrain") == ["FINISHED"]
    listed = up.gpt2("models")
    assert listed.count("gpt2-sentiment │") == 1 or " 2 │" not in listed


def test_commands_use_the_running_services(up):
    said = up.gpt2("run", "--preset", "smoke", *[w for c in up.changes for w in ("--set", c)])
    assert "every stage was done before" in said
    assert f"http://127.0.0.1:{up.mlflow}" in said


def test_a_schedule_fires_once_a_tick_also_when_deployed_again(up):
    """Every 30 seconds; registered again with another description between two ticks (Prefect #18894)."""
    again = (
        "from cluster.process_env import configure; configure()\n"
        "import flows.server as d\n"
        "from prefect.client.orchestration import get_client\n"
        "import sys\n"
        "entry = next(e for e in d.read() if e['name'] == 'tokenize') | {'description': sys.argv[1]}\n"
        "entry['schedules'] = [{'slug': 'often', 'interval': 30, 'active': True}]\n"
        "entry['work_pool']['job_variables'] = {}\n"
        f"entry['parameters'] = {{'stage': 'tokenize', 'preset': 'smoke', 'changes': {up.changes!r}}}\n"
        "with get_client(sync_client=True) as client: d.register_one(client, entry)\n"
    )

    def deploy(description: str) -> None:
        subprocess.run(
            [sys.executable, "-c", again, description], env=up.environment, check=True, timeout=200, cwd=up.folder
        )

    deploy("first")
    with up.client as client:
        deployment = client.read_deployment_by_name("gpt2/tokenize")

    def runs():
        with up.client as client:
            of = FlowRunFilter(deployment_id={"any_": [deployment.id]})
            return [r for r in client.read_flow_runs(flow_run_filter=of) if r.auto_scheduled]

    def done():
        return [r for r in runs() if r.state.type.value == "COMPLETED"]

    def deployed_schedules():
        with up.client as client:
            return client.read_deployment(deployment.id).schedules

    try:
        up.until(done, "a scheduled run", 180)
        before = [s.id for s in deployed_schedules()]
        count = len(done())
        deploy("second")
        deploy("third")
        assert [s.id for s in deployed_schedules()] == before
        up.until(lambda: len(done()) >= count + 2, "more scheduled runs", 240)
        ticks = [r.expected_start_time for r in runs() if r.state.type.value != "SCHEDULED"]
        assert len(ticks) == len(set(ticks))
    finally:
        with up.client as client:
            for schedule in deployed_schedules():
                client.delete_deployment_schedule(deployment.id, schedule.id)


def nothing_of_it_is_left(up, process: psutil.Process) -> bool:
    return not process.is_running() and not up.processes("ray::RayTrainWorker", "ray::TrainController")


def test_cancel_means_free(up):
    id = up.press("pipeline", *LONG)
    process = up.until_training(id)
    with up.client as client:
        client.set_flow_run_state(id, Cancelling())
    up.until(lambda: nothing_of_it_is_left(up, process), "freedom", 30)
    run = up.until(lambda: (r := up.run(id)).state.type.value == "CANCELLED" and r, "the state", 90)
    assert run.state.name == "Cancelled"
    with up.client as client:
        assert "CRASHED" not in [s.type.value for s in client.read_flow_run_states(id)]
    assert up.mlflow_runs("pretrain").count("KILLED") == 1 and "RUNNING" not in up.mlflow_runs("pretrain")
    name, _, documents = run.name.partition(", ")
    assert name.startswith("pipeline smoke · ") and documents.endswith(" documents")
    states = up.mlflow_runs(name)
    assert states and "RUNNING" not in states


def test_a_killed_process_is_crashed_and_goes_on(up):
    """SIGKILL of the run's process, then of the worker and the process at once, so that nobody is left to tell."""
    first = up.press("pipeline", *LONG)
    reached = up.reached()
    process = up.until_training(first, beyond=reached)
    process.send_signal(signal.SIGKILL)
    run = up.until_ended(first, 120)
    assert run.state.type.value == "CRASHED"

    second = up.press("pipeline", *LONG)
    reached = up.reached()
    process = up.until_training(second, beyond=reached)
    [worker] = up.processes("prefect worker start")
    worker.send_signal(signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    run = up.until_ended(second, 120)
    assert run.state.type.value == "CRASHED", run.state
    up.until(lambda: nothing_of_it_is_left(up, process), "freedom", 60)
    up.until(lambda: up.processes("prefect worker start"), "the worker", 60)
    assert "Prefect's worker was killed by signal 9; starting it again" in (up.home / "logs/up.log").read_text()

    reached = up.reached()
    third = up.press("pipeline", *LONG)
    up.until_training(third, beyond=reached)

    def lately_said():
        with up.client as client:
            return [log.message for log in client.read_logs(sort=LogSort.TIMESTAMP_DESC)]

    up.until(lambda: any("goes on from the checkpoint of step" in said for said in lately_said()), "the news", 30)
    with up.client as client:
        client.set_flow_run_state(third, Cancelling())
    up.until_ended(third, 120)


def test_a_run_that_was_taken_for_dead_says_that_it_lives(up):
    """As the automation does where no heartbeat came through, say since the server was away."""
    id, reached = up.press("pipeline", *LONG), up.reached()
    process = up.until_training(id, beyond=reached)
    with up.client as client:
        client.set_flow_run_state(id, Crashed(message=SILENCE), force=True)
    run = up.until(lambda: (r := up.run(id)).state.name == "Running" and r, "life", 120)
    assert run.state.message == LIVES and process.is_running()
    with up.client as client:
        client.set_flow_run_state(id, Cancelling())
    assert up.until_ended(id, 120).state.name == "Cancelled"


@pytest.mark.skipif(browser.executable() is None, reason="no Chromium is installed")
def test_an_analyst_fills_the_form_and_opens_the_report(up, request):
    """Login, form with a wrong value, form with a right one, the run's end, its report. Screenshots stay in the
    folder that GPT2_SCREENSHOTS names, if any."""
    shots = pictures(up)
    ui = f"http://127.0.0.1:{up.prefect}"
    with up.client as client:
        deployment = client.read_deployment_by_name("gpt2/pipeline")
    with browser.Browser(up.folder / "chromium") as page:
        log_in(up, page, shots / "1-login.png")
        page.screenshot(shots / "2-deployments.png")
        page.open(f"{ui}/deployments/deployment/{deployment.id}/run")
        page.until_text("Peak learning rate")
        for words in ("laptop takes minutes", "Optimizer steps", "Add item"):
            assert words in page.text()
        page.screenshot(shots / "3-form.png")
        page.choose("smoke")
        page.fill("Steps", "-3")
        page.click("button[type=submit]")
        page.until_text("-3 is less than the minimum of 1")
        page.screenshot(shots / "4-refused.png")
        page.fill("Steps", "41")
        page.add("changes", [c for c in up.changes if "pretrain.steps" not in c])
        page.screenshot(shots / "5-filled.png")
        newest = sent(up, page, deployment.id)
        assert newest.parameters["main"]["steps"] == 41
        ended = up.until_ended(str(newest.id), 600)
        assert ended.state.type.value == "COMPLETED", ended.state
        page.open(f"{ui}/runs/flow-run/{newest.id}")
        page.until_text("Completed")
        time.sleep(2)
        page.screenshot(shots / "6-run.png")
        page.open(f"{ui}/artifacts/key/report-sentiment")
        page.until_text("Evaluation of sentiment")
        found = "[...document.querySelectorAll('a')].filter(a => a.href.includes('/artifacts/artifact/'))"
        page.until(lambda: page.script(f"{found}.length"), "the artifact's link")
        page.script(f"{found}[0].click()")
        page.until_text("majority class")
        page.screenshot(shots / "7-report.png")
        page.open(f"http://gpt2:{up.secret('mlflow-password')}@127.0.0.1:{up.mlflow}/version")  # the login, once
        page.open(f"http://127.0.0.1:{up.mlflow}/#/models")
        page.until_text("gpt2-sentiment")
        page.screenshot(shots / "8-models.png")


@pytest.mark.skipif(browser.executable() is None, reason="no Chromium is installed")
def test_the_other_forms_do_what_they_say(up, small_data):
    """A refresh without new documents, monitoring, recommendations and a classifier, each from its form, with what the
    browser sends for fields that nobody touched."""
    for name in ("base", "sentiment", "recommendation"):  # whatever the gate said of so small a model
        up.gpt2("promote", f"gpt2-{name}", "1", "--force", "--reason", "for the forms", code=None)
    inbox = up.folder / "forms-inbox"
    inbox.mkdir()
    lines = [
        json.dumps({"text": f"@air number {i} was late", "time": f"2026-03-01T{i % 24:02}:00Z"}) for i in range(80)
    ]
    (inbox / "a.jsonl").write_text("\n".join(lines) + "\n")
    changes = [c for c in up.changes if "tasks" not in c and "pretrain.steps" not in c]
    with browser.Browser(up.folder / "chromium-forms") as page:
        log_in(up, page)
        this = functools.partial(press, up, page)
        assert "Nothing to do" in this("refresh", "smoke", changes=[*up.changes, "pretrain.steps=41"]).state.message
        this("monitor-sentiment", Sources=str(inbox))
        this("recommend", Source=str(small_data["interactions"]))
        this("train-classifier", "smoke", changes=changes, Source=str(small_data["posts"]), Max_Steps="4")
    assert "gpt2-posts" in up.gpt2("models")


def shown_settings(up, page, key):
    """The JSON on the newest page of that artifact."""
    page.open(f"http://127.0.0.1:{up.prefect}/artifacts/key/{key}")
    found = "[...document.querySelectorAll('a')].filter(a => a.href.includes('/artifacts/artifact/'))"
    page.until(lambda: page.script(f"{found}.length"), "the artifact's link")
    page.script(f"{found}[0].click()")
    page.until_text("and as Tasks")
    page.screenshot(pictures(up) / f"{key}.png")
    return json.loads(page.script("[...document.querySelectorAll('pre')].pop().innerText"))


@pytest.mark.skipif(browser.executable() is None, reason="no Chromium is installed")
def test_the_forms_of_a_search_and_of_a_catalogue_do_what_they_say(up, small_data):
    """Wrong input is told in a sentence; what a search finds goes, as its page shows it, into the form that learns."""
    up.gpt2("promote", "gpt2-base", "1", "--force", "--reason", "for the forms", code=None)
    posts, films = f"tasks.sentiment.source={small_data['posts']}", small_data["interactions"]
    own = {"Source": str(films / "items.jsonl"), "Name": "films", "Max_Steps": "3"}
    with browser.Browser(up.folder / "chromium-search") as page:
        log_in(up, page)
        this = functools.partial(press, up, page)
        form(up, page, "search")
        refused(page, "'task' is a required property")
        page.choose("sentiment")
        page.fill("Trials", "1")
        refused(page, "1 is less than the minimum of 2")
        page.screenshot(pictures(up) / "form-search-wrong.png")
        wrong = this("search", "sentiment", "smoke", changes=["tasks.sentiment.train.contxt=32"], ends="FAILED")
        assert wrong.state.message.endswith("there is no such setting; did you mean 'context'?")
        small = {"Trials": "2", "Max_Steps": "9", "Parallel": "1"}
        found = this("search", "sentiment", "smoke", changes=[posts], **small)
        assert found.parameters["config"]["max_steps"] == 9
        best = shown_settings(up, page, "search-sentiment")
        assert set(best) == {"sentiment"}
        tuned = {"Source": str(small_data["posts"]), "Name": "tuned", "Max_Steps": "4", "Tasks": json.dumps(best)}
        this("train-classifier", "smoke", **tuned)
        lacks = this("train-recommender", "smoke", Interactions=str(small_data["posts"]), ends="FAILED", **own)
        assert "posts.csv has no column 'user'; it has text, sentiment: set user_field" in lacks.state.message
        this("train-recommender", "smoke", Interactions=str(films / "interactions.jsonl"), **own)
    listed = up.gpt2("models")
    assert "gpt2-tuned" in listed and "gpt2-films" in listed


def test_no_secret_is_anywhere_but_in_its_file(up):
    secrets = [up.login.split(":")[1].encode()]
    for name in ("prefect-login", "mlflow-password", "ray-token"):
        secrets.append(up.secret(name).encode())
        assert (up.home / "services" / name).stat().st_mode & 0o777 == 0o600
    for file in (p for p in up.home.rglob("*") if p.is_file() and p.parent != up.home / "services"):
        if file.stat().st_size < 200e6:
            data = file.read_bytes()
            assert not any(secret in data for secret in secrets), file


def test_down_leaves_nothing_and_the_models_stay(up):
    """Last: what a killed `up` had started ends with it."""
    (up.folder / "posts.txt").write_text("a good fine film\nbad dull awful\n")
    predict = ("predict", "models:/gpt2-sentiment/1", "--input", "posts.txt", "--output")
    up.gpt2(*predict, "before.jsonl")
    os.kill(up.state["pid"], signal.SIGKILL)
    up.until(lambda: not up.processes(), "the end of its processes", 30)
    assert "Nothing is up" in up.gpt2("down") and "Nothing is up" in up.gpt2("status", code=3)
    assert "gpt2-sentiment" in up.gpt2("models")
    up.gpt2(*predict, "after.jsonl")
    assert (up.folder / "before.jsonl").read_text() == (up.folder / "after.jsonl").read_text()
