"""Each command, killed at drawn moments: within 30 seconds nothing of it is left, no process and so no listener."""

import contextlib
import os
import random
import subprocess
import sys
import time
import uuid

import psutil
import pytest

from tests.cluster.small import model_folder
from tests.flows.running import Up, free_ports
from tests.flows.test_pipeline import Home

KILLS, GONE, LONGEST = 3, 30, 40  # with KILLS=30 in the environment a drill of hours
DRILL = "DRILL"  # in the environment of a command, and so of all that it starts

ENDLESS = ("--set", "pretrain.steps=100000", "--set", "pretrain.epochs=10000")
COMMANDS = {
    "run": ("run", "CHANGES", *ENDLESS),
    "tokenize": ("run", "tokenize", "CHANGES", "--set", "tokenizer.vocab_size=NEW"),
    "refresh": ("run", "refresh", "CHANGES", "--set", "corpus.sources=[more.jsonl]", *ENDLESS),
    "train-classifier": ("train-classifier", "mood.csv", "--name", "drill-NEW", "--set", "label_field=sentiment"),
    "train-recommender": ("train-recommender", "films/items.jsonl", "films/interactions.jsonl", "--name", "drill-NEW"),
    "search": ("search", "sentiment", "--trials", "3", "--set", "seed=NEW"),
    "reproduce": ("reproduce", "models:/gpt2-sentiment/1"),
    "import": ("import", "exported"),
    "monitor": ("monitor", "posts.csv", "--set", "name=drill-NEW", "--set", "model=models:/gpt2-sentiment/1"),
    "recommend": ("recommend", "films", "--set", "top_k=NEW", "--set", "model=models:/gpt2-recommendation/1"),
    "predict": ("predict", "models:/gpt2-sentiment/1", "--input", "posts.txt", "--output", "scored.jsonl"),
    "generate": ("generate", "models:/gpt2-base/1", "This film", "--max-tokens", "40"),
    "serve": ("serve", "models:/gpt2-sentiment/1", "--port", "PORT"),
    "promote": ("promote", "gpt2-sentiment", "1", "--reason", "a drill"),
    "models": ("models",),
    "card": ("card", "models:/gpt2-sentiment/1"),
    "verdict": ("verdict", "models:/gpt2-sentiment/1"),
    "checkpoints": ("checkpoints", "verify"),
    "doctor": ("doctor",),
    "up": ("up", "PORTS"),
}
"""The words of each command; those in capitals are filled in."""


class Drills:
    """A home with registered models, in which commands are killed."""

    def __init__(self, folder, data, changes):
        self.home = Home(folder, changes)
        self.up = Up(folder, changes)
        lines = data["corpus"].read_text().splitlines(keepends=True)
        (folder / "more.jsonl").write_text("".join(line.replace("film", "movie") for line in lines))
        posts = data["posts"].read_text()
        (folder / "mood.csv").write_text(posts)
        texts = [line.partition(",")[0] for line in posts.splitlines()[1:]]
        (folder / "posts.txt").write_text("\n".join(texts))
        (folder / "posts.csv").write_text("\n".join(["text,time", *(f"{t},2026-03-01T00:00:00Z" for t in texts)]))
        (folder / "films").symlink_to(data["interactions"])
        self.home.run()
        checkpoint = next(folder.glob("home/store/base/*/model"))
        (folder / "exported").symlink_to(checkpoint)

    def start(self, name: str) -> tuple[subprocess.Popen, str]:
        """Start a command with a drill's id in its environment."""
        id, new = uuid.uuid4().hex, str(300 + random.randrange(10**6) % 400)
        self.up.prefect, self.up.mlflow, self.up.ray, self.up.dashboard = ports = free_ports(4)
        options = ("--prefect-port", "--mlflow-port", "--ray-port", "--ray-dashboard-port")
        filled = {
            "PORT": [str(ports[0])],
            "PORTS": [w for o, p in zip(options, ports, strict=True) for w in (o, str(p))],
        }
        filled["CHANGES"] = self.home.command()[3:]
        words = [w.replace("NEW", new) for word in COMMANDS[name] for w in filled.get(word, [word])]
        with open(self.home.folder / f"{name}.log", "w") as log:
            command = [sys.executable, "-m", "flows.cli", *words]
            environment = {**self.home.environment, DRILL: id}
            process = subprocess.Popen(command, cwd=self.home.folder, env=environment, stdout=log, stderr=log)
        return process, id

    def duration(self, name: str) -> float:
        """Seconds that the command takes undisturbed, at most `LONGEST`; a short one must end well."""
        begin = time.monotonic()
        process, id = self.start(name)
        try:
            assert process.wait(LONGEST) == 0, (self.home.folder / f"{name}.log").read_text()[-3000:]
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        took = time.monotonic() - begin
        assert not left(id, set())
        return took

    def kill(self, name: str, seconds: float) -> float:
        """Kill the command after so many seconds; return how long anything of it lived on."""
        process, id = self.start(name)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        family = set(psutil.Process(process.pid).children(recursive=True)) if process.poll() is None else set()
        process.kill()
        process.wait()
        begin = time.monotonic()
        alive = left(id, family)
        assert not alive, (name, seconds, alive, (self.home.folder / f"{name}.log").read_text()[-2000:])
        return time.monotonic() - begin


def left(id: str, family: set[psutil.Process]) -> list[str]:
    """What is still alive of a drill `GONE` seconds after its end, found by its environment or known before."""
    deadline = time.monotonic() + GONE
    while (alive := [*of_drill(id), *(p for p in family if lives(p))]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [f"{p.pid} {' '.join(p.cmdline())[:200]}" for p in alive if lives(p)]


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def of_drill(id: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(DRILL) == id and lives(process):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def drills(tmp_path_factory, small_data, small_changes):
    return Drills(tmp_path_factory.mktemp("drills"), small_data, small_changes)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", COMMANDS)
def test_thirty_kills_of_a_command_leave_nothing(drills, name):
    draw, longest = random.Random(name), drills.duration(name)
    lived = [drills.kill(name, draw.uniform(0, longest)) for _ in range(int(os.environ.get("KILLS", KILLS)))]
    print(f"{name}: took {longest:.0f} s; what it had started lived on for at most {max(lived):.1f} s")


def test_a_killed_command_takes_prefects_server_with_it(tmp_path):
    """A sample of the above: killed as soon as the embedded server is there."""
    model, home, id = model_folder(tmp_path / "model"), Home(tmp_path, []), uuid.uuid4().hex
    (tmp_path / "posts.csv").write_text("text\nlate again\n")
    command = [sys.executable, "-m", "flows.cli", "monitor", "posts.csv", "--set", f"model={model}"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**home.environment, DRILL: id})
    while not (servers := [p for p in of_drill(id) if "prefect.server" in " ".join(p.cmdline())]):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not left(id, set(servers))
