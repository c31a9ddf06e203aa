"""`gpt2 rollback` while readers keep reading: each gets a whole champion, first the one, then the one before."""

import subprocess
import sys
import threading
import time

import pytest

import gpt2
from cluster.registry import promotion
from tests.cluster.small import TEXTS, registered

pytestmark = pytest.mark.slow
NAME = "gpt2-read"


class Reader(threading.Thread):
    """Loads the champion again and again and lets it predict; remembers versions and what each predicted."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []
        self.answers: dict[str, set[str]] = {}
        self.times: list[float] = []
        self.leave = threading.Event()
        self.error: Exception | None = None

    def run(self):
        try:
            while not self.leave.is_set():
                model = gpt2.load(f"models:/{NAME}@champion")
                self.answers.setdefault(model.address, set()).add(model.predict(list(TEXTS)).to_json())
                self.seen.append(model.address)
                self.times.append(time.monotonic())
                time.sleep(0.1)  # they read, they do not fight for the machine
        except Exception as error:
            self.error = error


def test_readers_see_the_one_and_then_the_other(tmp_path):
    for seed in (0, 1):
        registered(NAME, tmp_path / str(seed), seed=seed)
        promotion.promote(NAME, str(seed + 1), "a test", force=True)
    one, two = f"models:/{NAME}/1", f"models:/{NAME}/2"
    readers = [Reader() for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        while not all(reader.seen for reader in readers):
            assert not any(reader.error for reader in readers)
            time.sleep(0.01)
        started = time.monotonic()
        command = [sys.executable, "-m", "flows.cli", "rollback", NAME, "--reason", "a test"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
        took = time.monotonic() - started
        counts = [len(reader.seen) for reader in readers]
        while not all(len(r.seen) > n + 2 for r, n in zip(readers, counts, strict=True)):
            assert not any(reader.error for reader in readers)
            time.sleep(0.01)
    finally:
        for reader in readers:
            reader.leave.set()
            reader.join()
    for reader in readers:
        assert reader.error is None
        back = reader.seen.index(one)
        assert reader.seen[:back] == [two] * back and back > 0
        assert set(reader.seen[back:]) == {one}
        assert {address: len(answers) for address, answers in reader.answers.items()} == {one: 1, two: 1}
        print(f"the command took {took:.2f} s; a reader had the champion before after", end=" ")
        print(f"{reader.times[back] - started:.2f} s, of {len(reader.seen)} reads")
