"""Drift is told when it begins, again while it lasts, and anew once it had ended."""

import json
import random

import pandas as pd
import pytest

from cluster.home import store
from cluster.registry.resolve import ResolvedModel
from flows.jobs import monitor
from gpt2.monitoring.config import MonitorConfig
from gpt2.store.artifact import Artifact

MODELS = [ResolvedModel("gpt2-mood", f"models:/gpt2-mood/{n}", f"{n:016}", "", "") for n in (1, 2)]


class Told:
    """What was handed to Prefect, and a monitor with a clock."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.ids, self.taken = folder, [], True
        monkeypatch.setenv("GPT2_HOME", str(folder / "home"))
        monkeypatch.setattr(monitor.events, "emit_once", self.emit)

    def emit(self, event: str, name: str, identity: str, **facts) -> bool:
        self.ids.append(identity)
        return self.taken

    def run(self, *drifted: str, model: int = 0, compared: bool = True, config: MonitorConfig = MonitorConfig()) -> int:  # noqa: B008
        """The number of events of one run."""
        figures = {"alerts": [], "drifted": dict.fromkeys(drifted, 0.4), "drift": ["Drifted."], "compared": compared}
        (self.folder / "told.json").write_text(json.dumps({**figures, "latest": "2026-03-01T00:00:00+00:00"}))
        built = Artifact(self.folder, {"files": {"told.json": {}}})
        before = len(self.ids)
        monitor.send_events(config, MODELS[model], built, self.folder / "page.html")
        return len(self.ids) - before

    def age(self, days: float) -> None:
        """All that was told, so many days earlier."""
        for path in store().root.glob("drift-*/*/manifest.json"):
            manifest = json.loads(path.read_text())
            created = pd.Timestamp(manifest["created"]) - pd.Timedelta(days=days)
            path.write_text(json.dumps({**manifest, "created": created.strftime("%Y-%m-%dT%H:%M:%SZ")}))


@pytest.fixture
def told(tmp_path, monkeypatch):
    return Told(tmp_path, monkeypatch)


def test_drift_that_ends_and_begins_again_is_told_again(told):
    assert [told.run("tokens"), told.run("tokens"), told.run("score", "tokens"), told.run("score")] == [1, 0, 1, 0]
    assert told.run(compared=False) == told.run("tokens") == 0  # that too few posts came is no end of it
    assert [told.run(), told.run(), told.run("tokens"), told.run("tokens")] == [0, 0, 1, 0]
    assert told.run("tokens", model=1) == 1 and told.run("tokens") == 0
    assert len(set(told.ids)) == 4


def test_drift_that_lasts_is_told_again_after_the_stated_days(told):
    assert told.run("tokens") == 1
    told.age(6.9)
    assert told.run("tokens") == 0
    told.age(0.2)
    assert [told.run("tokens"), told.run("tokens")] == [1, 0]
    told.age(3)
    assert [told.run("tokens", config=MonitorConfig(drift_again_days=d)) for d in (4, 2, 2)] == [0, 1, 0]
    assert len(set(told.ids)) == 3


def test_what_prefect_did_not_take_is_the_same_event_when_it_is_told_again(told):
    told.run("tokens")
    told.run()
    told.taken = False
    assert told.run("tokens") == told.run("tokens") == 1
    told.taken = True
    assert [told.run("tokens"), told.run("tokens")] == [1, 0]
    assert len(told.ids) == 4 and len(set(told.ids)) == 2


@pytest.mark.parametrize("seed", range(8))
def test_as_a_plain_count_of_days_has_it(told, seed):
    """Of a random history: drift is told where a measure was not told since nothing drifted, or 7 days ago."""
    generator, known, age = random.Random(seed), set(), 0
    for _ in range(30):
        days = generator.choice([0, 1, 4])
        told.age(days)
        age += days
        drifted = {m for m in ("tokens", "score") if generator.random() < 0.6}
        wanted = bool(drifted) and (not drifted <= known or age >= 7)
        assert told.run(*drifted) == wanted
        known = (known | drifted) if drifted else set()
        age = 0 if wanted else age
