"""Hosts that share nothing but the network: services; driver and Ray's head; a worker. An S3 server is the store."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2.training.journal import EVENTS, JOURNAL, read_journal
from tests.cluster.training.test_launch import losses
from tests.hosts import Host, Hosts

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2"),
    pytest.mark.timeout(1200),
]
PYTHON, BIN = sys.executable, Path(sys.executable).parent
STORE = "s3://bucket/team"
AWS = {
    "AWS_ENDPOINT_URL": "http://10.77.0.1:5000",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}
COMMON = {
    "GPT2_HOME": "/srv/disk/home",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "a" * 64,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "300",  # on a busy machine
}
HEAD = "10.77.0.2:6379"


class Cluster:
    """An S3 server on the first host, Ray's head on the second, a worker on the third."""

    def __init__(self, services: Host, head: Host, worker: Host, data: dict[str, Path]):
        self.services, self.head, self.worker = services, head, worker
        services.start(f"{PYTHON} -m moto.server --host=10.77.0.1 --port=5000", log="s3.log")
        self.until(lambda: self.python(services, "boto3.client('s3').create_bucket(Bucket='bucket')", "boto3"))
        for name, path in data.items():
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, head.outside / "disk" / name)
        head.start(self.ray("--head --include-dashboard=false"), env=AWS | COMMON, log="ray.log")
        self.join(worker)

    def ray(self, how: str) -> str:
        return f"{BIN}/ray start {how} --node-ip-address=$ADDRESS --num-cpus=1 --block"

    def join(self, host: Host) -> None:
        """Let a host join, once the head answers."""
        self.until(lambda: host.run(f"{BIN}/ray status --address={HEAD}", env=AWS | COMMON).returncode == 0)
        host.start(self.ray(f"--address={HEAD}"), env=AWS | COMMON, log="ray.log")
        alive = f"ray.init('{HEAD}', log_to_driver=False); assert sum(n['Alive'] for n in ray.nodes()) == 2"
        self.until(lambda: self.python(self.head, alive, "ray"))

    def python(self, host: Host, code: str, module: str) -> bool:
        return host.run(f'{PYTHON} -c "import {module}; {code}"', env=AWS | COMMON).returncode == 0

    def until(self, condition) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def command(self, stage: str, *changes: str) -> str:
        settings = [
            "corpus.sources=[/srv/disk/corpus.jsonl]", "corpus.validation_share=0.1",
            "tokenizer.vocab_size=300", "pretrain.epochs=100", "tasks.sentiment.source=/srv/disk/posts.csv",
            "tasks.sentiment.train.steps=4", "tasks.recommendation.enabled=false", *changes,
        ]  # fmt: skip
        return f"{PYTHON} -m flows.cli run {stage} --preset smoke " + " ".join(f"--set '{s}'" for s in settings)

    def distant(self, **more: str) -> dict[str, str]:
        return AWS | COMMON | {"RAY_ADDRESS": HEAD, "GPT2_STORE": STORE} | more


def cache(host: Host) -> Path:
    """The folder of a host that is its cache of the store."""
    (folder,) = (host.outside / "disk" / "home" / "cache").iterdir()
    return folder


def manifest(root: Path, kind: str) -> dict:
    (found,) = root.glob(f"{kind}/*/manifest.json")
    return json.loads(found.read_text())


def passed(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout + done.stderr


@pytest.fixture
def cluster(tmp_path, small_data):
    data = {"corpus.jsonl": small_data["corpus"], "posts.csv": small_data["posts"]}
    with Hosts(3, tmp_path / "hosts") as hosts:
        yield Cluster(*hosts, data)


def test_the_pipeline_on_hosts_makes_the_bits_of_one_host(cluster):
    head, worker = cluster.head, cluster.worker
    passed(head.run(cluster.command("pipeline"), env=cluster.distant(), timeout=900))
    made = cache(head)
    usage = read_journal(next(made.glob("base/*/usage.jsonl")))
    assert len({u["node"] for u in usage if u["who"].startswith("rank")}) == 2  # a rank on each host
    assert not list((head.outside / "disk" / "home").glob("store/*"))
    assert not list(cache(worker).glob(".ranks/*"))

    alone = AWS | COMMON | {"GPT2_HOME": "/srv/disk/alone"}
    passed(head.run(cluster.command("pipeline"), env=alone, timeout=900))
    same = head.outside / "disk" / "alone" / "store"
    for kind in ("documents", "tokenizer", "tokens", "base", "sentiment"):
        files = [manifest(root, kind)["files"] for root in (made, same)]
        for name in files[1]:
            if name.startswith("model/") or kind not in ("base", "sentiment"):
                assert files[0][name]["sha256"] == files[1][name]["sha256"], f"{kind} {name}"
    journals = [read_journal(next(root.glob(f"base/*/{JOURNAL}"))) for root in (made, same)]
    assert losses(journals[0]) == losses(journals[1])

    # A home is a cache: without it nothing is made again.
    shutil.rmtree(made)
    again = passed(head.run(cluster.command("pretrain"), env=cluster.distant(), timeout=300))
    assert "pretrain: done before" in again


def test_a_lost_host_is_replaced_by_another_that_joins(cluster):
    head, worker = cluster.head, cluster.worker
    command = cluster.command("pretrain", "pretrain.steps=400", "pretrain.checkpoint_every=20")
    run = head.start(command, env=cluster.distant(), log="run.log")
    folder = lambda: next((head.outside / "disk" / "home").glob("cache/*/.partial/base-*"), Path("absent"))  # noqa: E731
    cluster.until(lambda: sum(e["event"] == "checkpoint" for e in read_journal(folder() / EVENTS)) >= 2)
    worker.lose()
    worker.boot()
    cluster.join(worker)
    assert run.wait(600) == 0, (head.outside / "run.log").read_text()[-5000:]
    events = read_journal(next(cache(head).glob(f"base/*/{EVENTS}")))
    begun = [e["step"] for e in events if e["event"] == "begin"]
    assert begun[0] == 0 and begun[-1] >= 40
    assert len(losses(read_journal(next(cache(head).glob(f"base/*/{JOURNAL}"))))) > 0


def test_a_store_that_is_not_there_is_refused_before_anything_starts(tmp_path):
    with Hosts(1, tmp_path / "hosts") as (host,):
        for change, reason in (
            ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "check the address"),
            ({"AWS_ENDPOINT_URL": "http://10.77.0.9:5000"}, "check the address"),
        ):
            done = host.run(
                f"{PYTHON} -m flows.cli run --preset smoke", env={**AWS, **COMMON, **change, "GPT2_STORE": STORE}
            )
            assert done.returncode and reason in done.stdout + done.stderr
            assert "Traceback" not in done.stderr and "Starting" not in done.stdout
