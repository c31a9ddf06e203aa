"""A model over HTTP: real requests over loopback, while the champion changes."""

import asyncio
import concurrent.futures
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from fastapi.openapi.models import OpenAPI
from prometheus_client.parser import text_string_to_metric_families

from cluster.registry.download import FOLDER, MANIFEST_TAG
from cluster.registry.followed import AnswerLog, Batcher, Busy
from cluster.registry.promotion import promote, rollback
from cluster.serving import TOKEN, server
from cluster.tracking.runs import client
from gpt2.loading import load
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.posts import read_files
from gpt2.store.artifact import Store
from tests.cluster.small import TEXTS, model_folder, registered

POLL = 0.05


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    """A model with two versions of other answers; the first is the champion."""
    for seed in (0, 1):
        registered("gpt2-served", tmp_path_factory.mktemp("served"), seed=seed)
    promote("gpt2-served", "1", "a start", force=True)
    return "gpt2-served"


@pytest.fixture
def serving(name):
    """Starts servers in threads: `serving(**options)` gives a port."""
    running = []

    def start(address=f"models:/{name}@champion", **options):
        made, listener = server(address, port=0, **{"poll": POLL, **options})
        thread = threading.Thread(target=made.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((made, thread))
        while not made.started:
            time.sleep(0.01)
        return listener.getsockname()[1]

    yield start
    for made, thread in running:
        made.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def ask(connection, body, path="/predict", **headers):
    """(status, answer) of a request on a connection."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    connection.request("POST" if body else "GET", path, content or None, headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def connect(port):
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


def expected(name, version):
    """The version's own probabilities of the texts."""
    return load(f"models:/{name}/{version}").predict(list(TEXTS)).to_dict("records")


def test_answers_carry_the_version_and_health_tells(name, serving):
    connection = connect(serving())
    status, answer = ask(connection, {"inputs": list(TEXTS)})
    assert status == 200 and (answer["model"], answer["version"]) == (name, 1)
    for got, wanted in zip(answer["predictions"], expected(name, 1), strict=True):
        assert got["label"] == wanted["label"]
        assert got["probability_positive"] == pytest.approx(wanted["probability_positive"], abs=1e-2)
    status, told = ask(connection, b"", "/health")
    assert status == 200 and told == {"status": "ok", "model": name, "version": 1, "waiting": 0, "trouble": None}


BAD = {
    "no JSON": (b"{", 422, "the body"),
    "a deep one": (b"[" * 4000, 422, "the body"),
    "no inputs": ({"params": {}}, 422, "inputs"),
    "none": ({"inputs": []}, 422, "inputs"),
    "a number": ({"inputs": [5]}, 422, "inputs.0"),
    "an empty text": ({"inputs": [" "]}, 422, "not empty"),
    "a lone surrogate": (b'{"inputs": ["\\ud800"]}', 422, ""),
    "a record": ({"inputs": [{"history": ["a"]}]}, 422, "give a text"),
    "a parameter of another task": ({"inputs": ["a"], "params": {"top_k": 1}}, 422, "no parameter 'top_k'"),
    "more": ({"inputs": ["a"], "more": 1}, 422, "more"),
    "too many": ({"inputs": ["a"] * 9}, 413, "at most 8"),
    "too large": ({"inputs": ["a" * 5000]}, 413, "larger than 4096 bytes"),
}


def test_bad_requests_are_told_and_nothing_stops(serving):
    port = serving(max_inputs=8, max_bytes=4096)
    for content, status, reason in BAD.values():
        got, answer = ask(connect(port), content)
        assert (got, reason in answer["error"]) == (status, True), (content, got, answer)
    assert ask(connect(port), {"inputs": ["a"]}, Content_Type="text/plain")[0] == 415
    connection = connect(port)
    headers = {"Content-Type": "application/json"}  # of no stated length
    connection.request("POST", "/predict", iter([b"x" * 3000] * 3), headers, encode_chunked=True)
    assert connection.getresponse().status in (400, 413)
    connection = connect(port)
    status, answer = ask(connection, {"inputs": ["a"]}, Host="evil.example")
    assert status == 400 and "'evil.example' is not 127.0.0.1; a proxy on this machine sends" in answer["error"]
    with socket.create_connection(("127.0.0.1", port)) as half:
        half.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")  # and leave
    assert ask(connect(port), {"inputs": ["a good flight"]})[0] == 200


def test_what_clients_and_proxies_send_is_understood(serving):
    port = serving(max_inputs=3)
    wanted = ask(connect(port), {"inputs": ["a good flight"]})[1]["predictions"]
    for path, headers in (
        ("/predict/", {}),
        ("/predict", {"Content_Type": "Application/JSON; Charset=UTF-8"}),
        ("/predict", {"Host": f"LocalHost:{port}"}),
    ):
        assert ask(connect(port), {"inputs": ["a good flight"]}, path, **headers)[1]["predictions"] == wanted
    status, answer = ask(connect(port), b'{"inputs": ["\\ud83d", "a good flight", "cut \\uDE00"]}')
    first, good, last = answer["predictions"]
    assert status == 200 and [good] == wanted
    assert (
        first == last == {"error": "the text holds half of a surrogate pair, as a cut \\ud83d; send whole characters"}
    )
    assert ask(connect(port), b'{"inputs": ["\\ud83d\\ude00"]}')[0] == 200
    assert ask(connect(port), b'{"inputs": ["\\ud83d", "a", "b", "c"]}')[0] == 413


def test_a_door_to_other_machines_needs_a_token(name, serving, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(ValueError, match=f"set {TOKEN}"):
        server(f"models:/{name}@champion", host="0.0.0.0")
    monkeypatch.setenv(TOKEN, "a secret")
    port = serving()
    assert ask(connect(port), {"inputs": ["a"]})[0] == 401
    assert ask(connect(port), {"inputs": ["a"]}, Authorization="Bearer another")[0] == 401
    assert ask(connect(port), {"inputs": ["a"]}, Authorization="Bearer a secret")[0] == 200


def test_what_cant_be_served_is_refused_at_once(name, serving):
    port = serving()
    with pytest.raises(ValueError, match="another --port"):
        server(f"models:/{name}@champion", port=port)
    with pytest.raises(ValueError, match="gpt2-nothing"):
        server("models:/gpt2-nothing@champion", port=0)


def load_over(port, name, swaps, clients, generator):
    """Ask all the time from many connections while `swaps` change the champion: every answer, by version."""
    done, answers = threading.Event(), []
    wanted = {v: [row["probability_positive"] for row in expected(name, v)] for v in (1, 2)}

    def client_loop(seed):
        draws, connection, mine = random.Random(seed), connect(port), []
        while not done.is_set():
            chosen = [draws.randrange(2) for _ in range(draws.randint(1, 5))]
            status, answer = ask(connection, {"inputs": [TEXTS[i] for i in chosen]})
            assert status == 200, answer
            right = wanted[answer["version"]]
            for i, row in zip(chosen, answer["predictions"], strict=True):
                assert row["probability_positive"] == pytest.approx(right[i], abs=1e-2)
            mine.append(answer["version"])
        return mine

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        loops = [pool.submit(client_loop, generator.random()) for _ in range(clients)]
        try:
            for swap, version in swaps:
                swap()
                watcher, deadline = connect(port), time.monotonic() + 60
                while ask(watcher, b"", "/health")[1]["version"] != version:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                time.sleep(0.1)
        finally:
            done.set()
        for loop in loops:
            answers += loop.result()
    return answers


def there(name):
    return lambda: promote(name, "2", "better answers", force=True), 2


def back(name):
    return lambda: rollback(name), 1


def test_a_new_champion_takes_over_under_load(name, serving):
    answers = load_over(serving(), name, [there(name), back(name)], 4, random.Random(0))
    assert {1, 2} == set(answers)


def test_a_damaged_champion_does_not_take_over(name, serving, tmp_path):
    port = serving()
    shutil.copytree(model_folder(tmp_path), tmp_path / "stored" / FOLDER)
    os.truncate(tmp_path / "stored" / FOLDER / "head.safetensors", 10)
    listed = client().get_model_version(name, "1").tags[MANIFEST_TAG]
    made = client().create_model_version(name, (tmp_path / "stored").as_uri(), tags={MANIFEST_TAG: listed})
    client().set_registered_model_alias(name, "champion", made.version)
    try:
        deadline = time.monotonic() + 30
        while not (told := ask(connect(port), b"", "/health")[1])["trouble"]:
            assert time.monotonic() < deadline
        assert told["version"] == 1 and f"models:/{name}/{made.version} is refused" in told["trouble"]
        assert ask(connect(port), {"inputs": list(TEXTS)})[1]["version"] == 1
    finally:
        client().set_registered_model_alias(name, "champion", "1")


def test_figures_are_told_in_prometheus_form(serving):
    port = serving()
    ask(connect(port), {"inputs": list(TEXTS)})
    ask(connect(port), {"inputs": []})
    connection = connect(port)
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    found = {
        (sample.name.removeprefix("gpt2_serve_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.read().decode())
        for sample in family.samples
    }
    assert found["requests_total", "/predict", "200"] == found["requests_total", "/predict", "422"] == 1
    assert found["batches_total",] == found["model_version", "gpt2-served"] == 1
    assert found["request_seconds_count", "/predict"] == 2 and found["waiting_inputs",] == 0


def test_the_description_is_openapis_and_names_every_path(serving):
    port = serving()
    status, told = ask(connect(port), b"", "/openapi.json")
    assert status == 200 and OpenAPI.model_validate(told).openapi == "3.1.0"
    assert set(told["paths"]) == {"/predict", "/health", "/metrics", "/openapi.json", "/docs"}
    body = told["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["inputs"]
    assert httpx.get(f"http://127.0.0.1:{port}/docs").status_code == 200


def test_a_monitor_reads_the_log_of_answers_as_posts(serving, tmp_path):
    port = serving(log=tmp_path / "log")
    rows = [ask(connect(port), {"inputs": [text]})[1]["predictions"][0] for text in (*TEXTS, TEXTS[0])]
    ask(connect(port), {"inputs": [" "]})
    [file] = (tmp_path / "log").iterdir()
    assert file.stat().st_mode & 0o77 == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["answer"] for line in lines] == rows
    assert all((line["model"], line["version"]) == ("gpt2-served", 1) for line in lines)
    config = MonitorConfig(sources=[str(tmp_path / "log")], time_field="time", id_field="id")
    posts, troubles, _ = read_files(Store(tmp_path / "store"), config, print)
    assert sorted(posts["text"]) == sorted([*TEXTS, TEXTS[0]]) and not troubles


def test_a_log_that_cant_be_written_stops_no_answer(name, tmp_path):
    said, model = [], load(f"models:/{name}/1")
    log = AnswerLog(tmp_path, said.append)
    log.add(model, ["a"], [{"label": "x"}])
    os.close(log.file)
    log.file = os.open("/dev/full", os.O_WRONLY)
    for _ in range(2):
        log.add(model, ["b"], [{"label": "x"}])
        log.file, log.day = os.open("/dev/full", os.O_WRONLY), log.day or time.strftime("%Y-%m-%d", time.gmtime())
    assert len(said) == 1 and "No space left" in said[0] and log.lost == 2
    [file] = tmp_path.glob("*.jsonl")
    file.write_text(file.read_text() + '{"cut')
    log.close()
    log.add(model, ["c"], [{"label": "x"}])
    first, cut, last = file.read_text().splitlines()
    assert json.loads(first)["text"] == "a" and cut == '{"cut' and json.loads(last)["text"] == "c"
    with pytest.raises(ValueError, match="give another folder"):
        AnswerLog(file, print)


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A language model in the registry; its address."""
    registered("gpt2-writer", tmp_path_factory.mktemp("writer"), "base")
    return "models:/gpt2-writer/1"


def events(response):
    """The JSON of server-sent events; the last one must be [DONE]."""
    *chunks, done = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert done == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def test_completions_have_openais_form_whole_and_in_pieces(writer, serving, tmp_path):
    port = serving(writer, log=tmp_path)
    asked = {"model": "gpt2-writer", "prompt": ["My bag", "The crew"], "n": 2, "max_tokens": 12, "seed": 5}
    wanted = load(writer).predict(asked["prompt"], samples=2, max_tokens=12, seed=5, temperature=1.0, top_k=0)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=60) as client:
        assert [one["id"] for one in client.get("/models").json()["data"]] == ["gpt2-writer"]
        whole = client.post("/completions", json=asked).json()
        assert whole["object"] == "text_completion" and whole["model"] == "gpt2-writer"
        assert [choice["text"] for choice in whole["choices"]] == list(wanted["text"])
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
        assert whole["usage"]["completion_tokens"] <= 48
        reasons = {choice["finish_reason"] for choice in whole["choices"]}
        assert reasons <= {"length", "stop"} and (whole["usage"]["completion_tokens"] == 48) == (reasons == {"length"})
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        with client.stream("POST", "/completions", json={**asked, **stream}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            *chunks, last = events(response)
        assert last["usage"] == whole["usage"] and len(chunks) > 8
        texts = [""] * 4
        for chunk in chunks:
            [choice] = chunk["choices"]
            texts[choice["index"]] += choice["text"]
        assert texts == list(wanted["text"])
        ends = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"][0]["finish_reason"]]
        assert ends == [choice["finish_reason"] for choice in whole["choices"]]
        stop = whole["choices"][0]["text"][3:5]
        cut = client.post("/completions", json={**asked, "stop": ["never so", stop]}).json()["choices"][0]
        assert cut["text"] == texts[0][: texts[0].index(stop)] and cut["finish_reason"] == "stop"
        assert client.post("/completions", json={"model": "gpt2-writer"}).status_code == 200
    several = ask(connect(port), {"inputs": ["My"], "params": {"samples": 3, "max_tokens": 4}})[1]["predictions"]
    assert [row["prompt"] for row in several] == ["My"] * 3
    [file] = tmp_path.iterdir()
    logged = [json.loads(line) for line in file.read_text().splitlines()][:8]
    assert [(line["text"], line["answer"]["text"]) for line in logged[:4]] == [
        (prompt, text) for prompt, text in zip(wanted["prompt"], wanted["text"], strict=True)
    ]


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"model": "gpt-5"}, 404, "'gpt-5' is not served here; ask for 'gpt2-writer'"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": "a " * 300}, 400, "shorten the prompt"),
        ({"prompt": "a " * 300, "stream": True}, 400, "shorten the prompt"),
        ({"n": 65}, 400, "at most 64"),
        ({"logprobs": 3}, 400, "logprobs"),
        ({"stop": [""]}, 400, "stop string is empty"),
        ({"temperature": -1}, 400, "temperature"),
    ],
)
def test_what_a_completion_cant_have_is_refused_in_openais_form(writer, completing, change, status, reason):
    asked = {"model": "gpt2-writer", "prompt": "My bag", "max_tokens": 4}
    response = httpx.post(f"{completing}/v1/completions", json={**asked, **change}, timeout=60)
    assert response.status_code == status and reason in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.fixture
def completing(writer, serving):
    return f"http://127.0.0.1:{serving(writer)}"


def test_others_are_answered_while_a_text_is_written_and_one_who_leaves_frees_his_place(writer, completing):
    long = {"model": "gpt2-writer", "prompt": ["a"] * 8, "n": 8, "max_tokens": 50, "stream": True}
    with httpx.stream("POST", f"{completing}/v1/completions", json=long, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        busy = httpx.post(f"{completing}/v1/completions", json={"model": "gpt2-writer"}, timeout=60)
        assert busy.status_code in (200, 503)  # 503 unless all was written meanwhile
    deadline = time.monotonic() + 30
    while "gpt2_serve_texts 0.0" not in httpx.get(f"{completing}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert httpx.post(f"{completing}/v1/completions", json={"model": "gpt2-writer"}, timeout=60).status_code == 200


class Slow:
    """A model that notes the sizes of its batches."""

    task, address = "sentiment", "models:/x/1"

    def __init__(self, task="sentiment"):
        self.task, self.sizes = task, []

    def predict(self, inputs, **params):
        import pandas as pd

        self.sizes.append(len(inputs))
        time.sleep(0.02)
        if "bad" in inputs:
            raise ValueError("bad")
        return pd.DataFrame({"text": inputs, **params})


def batch(model, requests, **options):
    """The outcomes of requests that arrive together."""

    async def all_of_them():
        batcher = Batcher(lambda: model, **options)
        running = asyncio.create_task(batcher.run())
        found = await asyncio.gather(*(batcher.predict(i, p) for i, p in requests), return_exceptions=True)
        running.cancel()
        assert batcher.waiting == 0
        return found

    return asyncio.run(all_of_them())


def test_what_waits_is_computed_together():
    model = Slow()
    found = batch(model, [([f"{i}", "x"], {}) for i in range(40)], batch=16)
    assert [rows for _, rows in found] == [[{"text": f"{i}"}, {"text": "x"}] for i in range(40)]
    assert model.sizes == [16] * 5


def test_batches_keep_apart_what_differs():
    model = Slow()
    batch(model, [(["a"], {"k": 1}), (["b"], {"k": 1}), (["c"], {"k": 1.0}), (["d"], {})])
    assert model.sizes == [2, 1, 1]
    model = Slow("base")  # an answer must not depend on who asks at the same time
    batch(model, [(["a"], {}), (["b"], {})])
    assert model.sizes == [1, 1]


def test_one_bad_request_does_not_spoil_the_others_and_the_queue_is_bounded():
    one, bad, two, late = batch(Slow(), [(["a"], {}), (["bad"], {}), (["b"], {}), (["x"] * 9, {})], waiting=10)
    assert isinstance(bad, ValueError) and one[1] == [{"text": "a"}] and two[1] == [{"text": "b"}]
    assert isinstance(late, Busy)


@pytest.mark.slow
def test_the_command_under_load_across_many_swaps(name):
    """As a user runs it: ten swaps under sixteen connections, no failed request; SIGTERM finishes what is under way."""
    command = [sys.executable, "-m", "flows.cli", "serve", f"models:/{name}@champion", "--port", "0", "--poll", "0.2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy())
    try:
        line = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)", line)[1])
        answers = load_over(port, name, [there(name), back(name)] * 5, 16, random.Random(1))
        assert len(answers) > 500 and {1, 2} == set(answers)
        print(f"{len(answers)} requests across 10 swaps, none failed")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            connections = [connect(port) for _ in range(4)]
            for connection in connections:
                ask(connection, {"inputs": list(TEXTS)})
            last = [pool.submit(ask, c, {"inputs": list(TEXTS) * 100}) for c in connections]
            time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert all(f.result()[0] == 200 for f in last)
        assert process.wait(60) in (0, 143, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
