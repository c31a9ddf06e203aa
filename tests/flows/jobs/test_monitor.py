"""The monitor and the recommendations as a user runs them, killed on the way and run again."""

import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from prefect.server.schemas.schedules import CronSchedule
from prefect.states import State
from safetensors.torch import load_file, save_file

from cluster.batch import scoring
from cluster.home import store
from cluster.registry.resolve import resolve_model
from flows.config import InvalidConfig, settings
from flows.jobs import monitor
from flows.jobs.monitor import build_index
from gpt2.loading import read
from gpt2.monitoring import scored
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.demo import DAYS, SURGE, TOPIC, replay
from gpt2.store.artifact import Key
from tests.cluster.small import model_folder
from tests.conftest import sentence
from tests.flows.test_pipeline import Home

pytestmark = pytest.mark.timeout(900)


def divided(folder: Path) -> tuple[Path, list[str], list[str]]:
    """A model with random weights whose bias is such that it finds half of made-up sentences negative; both halves."""
    model, generator = model_folder(folder), random.Random(0)
    texts = sorted({sentence(generator, 6) for _ in range(400)})
    odds = torch.logit(torch.from_numpy(read(model)[1].probabilities(texts)[:, 1]))
    head = load_file(model / "head.safetensors")
    name = next(n for n in head if n.endswith("bias"))
    head[name] = head[name] - torch.tensor([0.0, float(odds.median())])
    save_file(head, model / "head.safetensors")
    labels = read(model)[1].predict(texts, {})["label"]
    halves = [
        [t for t, label in zip(texts, labels, strict=True) if label == wanted] for wanted in ("negative", "positive")
    ]
    assert min(map(len, halves)) > 100
    return model, *halves


def write(folder: Path, negative: list[str], positive: list[str], days: range) -> int:
    """40 posts a day about @air, a fifth of them negative; from day 30 on, four fifths. Returns how many."""
    generator, start, rows = random.Random(days.start), pd.Timestamp("2026-01-01", tz="UTC"), []
    for day in days:
        for minute in range(40):
            share = 0.8 if day >= 30 else 0.2
            text = generator.choice(negative if generator.random() < share else positive)
            rows.append(
                {"body": text, "at": (start + pd.Timedelta(days=day, minutes=minute)).isoformat(), "about": "air"}
            )
    (folder / f"{days.start}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


@pytest.mark.slow
def test_killed_and_run_again_each_post_counts_once_and_each_alert_is_told_once(tmp_path):
    model, negative, positive = divided(tmp_path / "model")
    home, inbox = Home(tmp_path, []), tmp_path / "inbox"
    inbox.mkdir()
    fields = {"model": model, "text_field": "body", "time_field": "at", "topic_field": "about", "window": "day"}
    fields["batch_posts"] = 20
    changes = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "flows.cli", "monitor", "inbox", *changes]
    count = write(inbox, negative, positive, range(32))
    process = subprocess.Popen(
        command, cwd=tmp_path, env=home.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while len(list(tmp_path.glob("home/store/scored-posts/*/manifest.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.glob("home/store/scored-posts/*/manifest.json")}

    def posts() -> pd.DataFrame:
        return pd.concat([pd.read_parquet(p) for p in tmp_path.glob("home/store/scored-posts/*/scored.parquet")])

    said = home.call(command)
    assert "alert air: " in said and "gpt2.sentiment.alert: air: " in said
    assert len(posts()) == count and posts()["post"].is_unique
    assert finished and all(p.stat().st_mtime_ns == was for p, was in finished.items())
    page = Path(re.findall(r"^Page: (.+)$", said, re.MULTILINE)[-1]).read_text()
    assert "2 alerts:" in page and "<svg" in page  # of air, and of all posts, which are the same
    index = pd.read_parquet(Path(re.findall(r"Parquet: (.+)$", said, re.MULTILINE)[-1]) / "index.parquet")
    assert index[index["topic"] == "air"]["posts"].sum() == count

    again = home.call(command)
    assert "0 new posts" in again and "gpt2.sentiment.alert:" not in again and "alert air: " in again
    count += write(inbox, negative, positive, range(32, 34))
    more = home.call(command)
    assert "80 new posts" in more and "gpt2.sentiment.alert:" not in more  # the same alert goes on
    assert len(posts()) == count and posts()["post"].is_unique


def test_one_post_of_a_time_to_come_silences_no_alert(tmp_path, monkeypatch):
    """Such a post was taken by an earlier version: the index leaves it out, and what is recent is so as of now."""
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    model = resolve_model(str(model_folder(tmp_path / "model")))
    config = MonitorConfig(time_field="time", window="day", min_posts=5)
    now = pd.Timestamp.now("UTC")
    times = [now - pd.Timedelta(days=n // 10) for n in range(300)] + [pd.Timestamp("2261-12-31", tz="UTC")]
    posts = pd.DataFrame({"post": [f"{n:032x}" for n in range(301)], "time": times})
    posts = posts.assign(topic=None, text=[f"@crew post {n}" for n in range(301)])
    for part in (posts[300:], posts):
        scoring.score(store(), part, config, model, None, print)
        built = build_index.fn(config, model, None, [], "")
        told = json.loads(built.file("told.json").read_text())
        assert pd.Timestamp(told["latest"]) < now + pd.Timedelta(days=2)
        assert "2261" not in built.file("page.html").read_text()
    table = pd.read_parquet(built.file("index.parquet"))
    assert built.info["posts"] == table[table["topic"] == "@crew"]["posts"].sum() == 300
    assert (table["window"].max(), table["window"].min()) == (now.floor("D"), (now - pd.Timedelta(days=29)).floor("D"))


def test_what_is_undecided_is_told_and_another_setting_counts_all_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    model = resolve_model(str(model_folder(tmp_path / "model")))
    config, now = MonitorConfig(window="day", min_posts=5), pd.Timestamp.now("UTC")
    posts = pd.DataFrame({"post": [f"{n:032x}" for n in range(60)], "time": now - pd.Timedelta(hours=30)})
    posts = posts.assign(topic=None, text=[f"@crew post {n}" for n in range(60)])
    scoring.score(store(), posts, config, model, None, print)
    confidence = scored.scored(scored.batches(store(), config), model.identity, ["confidence"])["confidence"]
    for least in (0.0, float(confidence.median())):
        config = config.model_copy(update={"abstain_below": least})
        built = build_index.fn(config, model, None, [], "")
        table = pd.read_parquet(built.file("index.parquet"))
        undecided = int((confidence < least).sum())
        assert built.info["undecided"] == undecided == table[table["topic"] == "@crew"]["undecided"].sum()
        told, page = json.loads(built.file("told.json").read_text())["undecided"], built.file("page.html").read_text()
        assert bool(told) == (f"{undecided} of 60 posts shown here (" in page) == (least > 0)
    assert 0 < undecided < 60


@pytest.mark.slow
@pytest.mark.parametrize("night", ["2026-03-29", "2026-10-25"])
def test_on_nights_when_clocks_change_twice_late_or_not_at_all_changes_nothing_but_the_time(
    tmp_path, monkeypatch, night
):
    """Prefect's own times of an hourly schedule in Berlin, some of them twice and some never, beside hours of UTC."""
    model, negative, positive = divided(tmp_path / "model")
    config = MonitorConfig(
        sources=[str(tmp_path / "inbox")], window="hour", min_posts=10, time_field="time", topic_field="topic"
    )
    begin = pd.Timestamp(night, tz="UTC")
    generator, rows = random.Random(night), []
    for minute in range(-50 * 60, 4 * 60, 4):
        surge = minute > 60
        text = generator.choice(negative if generator.random() < (0.9 if surge else 0.1) else positive)
        rows.append({"text": text, "topic": "air", "time": (begin + pd.Timedelta(minutes=minute)).isoformat()})
    clock, sent = begin, []
    for module in (monitor, monitor.monitoring_posts, scored):
        monkeypatch.setattr(module, "present", lambda: clock)
    monkeypatch.setattr(monitor, "show", lambda *arguments, **more: None)
    monkeypatch.setattr(monitor.events, "emit_once", lambda *words, **facts: sent.append(words) or True)
    for step in ("read_posts", "score_posts", "build_index", "report_events"):  # as Prefect runs them
        monkeypatch.setattr(monitor, step, getattr(monitor, step).fn)

    def hours(zone: str) -> list[pd.Timestamp]:
        schedule = CronSchedule(cron="5 * * * *", timezone=zone)
        times = [pd.Timestamp(t).tz_convert("UTC") for t in asyncio.run(schedule.get_dates(4, start=begin))]
        return [t for t in times if t < begin + pd.Timedelta(hours=4)]

    def watched(home: str, times: list[pd.Timestamp]) -> tuple[pd.DataFrame, set]:
        nonlocal clock
        monkeypatch.setenv("GPT2_HOME", str(tmp_path / home))
        sent.clear()
        for clock in [*times, begin + pd.Timedelta(hours=4, minutes=5)]:
            (tmp_path / "inbox").mkdir(exist_ok=True)
            arrived = [json.dumps(row) + "\n" for row in rows if pd.Timestamp(row["time"]) <= clock]
            (tmp_path / "inbox" / "posts.jsonl").write_text("".join(arrived))
            result = monitor.watch(config.model_copy(update={"model": str(model)}), "")
        assert len(set(sent)) == len(sent) >= 1  # each alert once
        return pd.read_parquet(Path(result["index"]) / "index.parquet"), set(sent)

    usual, told = watched("usual", hours("UTC"))
    berlin = hours("Europe/Berlin")
    assert len(berlin) == (4 if night.startswith("2026-03") else 3)  # in autumn an hour is left out
    late = [t + pd.Timedelta(minutes=generator.randrange(50)) for t in berlin for _ in range(generator.randrange(3))]
    table, also = watched("drawn", sorted(late))
    pd.testing.assert_frame_equal(table, usual)
    assert also == told


def test_an_emptied_inbox_changes_neither_drift_nor_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    (tmp_path / "inbox").mkdir()
    config = MonitorConfig(sources=[str(tmp_path / "inbox")])
    generator = random.Random(0)
    table = pd.DataFrame({"text": [f"@air {sentence(generator)}" for _ in range(300)]})

    def examples(out: Path) -> None:
        table.to_parquet(out / "train.parquet"), table.to_parquet(out / "test.parquet")

    learned = store().make(Key("sentiment-examples"), examples)
    model = resolve_model(str(model_folder(tmp_path / "model")))
    monkeypatch.setattr(monitor, "show", lambda *arguments, **more: None)
    monkeypatch.setattr(monitor, "report_events", lambda config, model, built: [])
    for step in ("read_posts", "score_posts", "build_index"):  # as Prefect runs them, without its server
        monkeypatch.setattr(monitor, step, getattr(monitor, step).fn)

    def watched(examples: str = learned.id) -> str:
        monkeypatch.setattr(monitor, "resolve_model", lambda address: replace(model, examples=examples))
        result = monitor.watch(config, "")
        return result if isinstance(result, State) else result["drift"]

    assert watched().message.startswith("no posts in ")
    assert not (tmp_path / "home" / "store" / "drift-reference").exists()  # nothing is loaded for nothing
    table.assign(text=table["text"] + " again").to_csv(tmp_path / "inbox" / "a.csv")
    before = watched()
    assert "training data" in before[0] and "Not compared" not in before[0]
    (tmp_path / "inbox" / "a.csv").rename(tmp_path / "a.csv")
    assert watched() == before
    assert watched(examples="gone") == ["Not compared: the training data of this version is not in this home."]
    assert watched() == before  # which of both is found depends on the reference, not on who came first


def test_a_wrong_setting_or_no_champion_is_refused_at_once():
    with pytest.raises(InvalidConfig, match="window = 'week'"):
        settings(MonitorConfig, {}, None, ["window=week"])
    with pytest.raises(InvalidConfig, match=r"abstain_below = 60"):
        settings(MonitorConfig, {}, None, ["abstain_below=60"])
    with pytest.raises(InvalidConfig, match="did you mean 'min_posts'"):
        settings(MonitorConfig, {}, None, ["min_post=3"])
    with pytest.raises(ValueError, match=r"gpt2-absent.*`gpt2 run` trains models"):
        resolve_model("models:/gpt2-absent@champion")


def test_the_replay_plants_its_surge_and_loses_no_post(tmp_path):
    generator, rows = random.Random(1), []
    for number in range(3000):
        topic = TOPIC if number % 3 == 0 else "@other"
        rows.append(
            {"text": f"{topic} {sentence(generator)} {number}", "sentiment": generator.choice(["negative", "neutral"])}
        )
    path = tmp_path / "posts.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    posts = replay(path)
    assert posts.equals(replay(path)) and sorted(posts["text"]) == sorted(r["text"] for r in rows)
    label = posts["text"].map({r["text"]: r["sentiment"] == "negative" for r in rows})
    day = (posts["time"] - posts["time"].min().floor("D")).dt.days
    mine = posts["text"].str.contains(TOPIC, regex=False)
    assert day.max() == DAYS - 1
    assert label[mine & day.isin(SURGE)].mean() > 0.8 and label[mine & ~day.isin(SURGE)].mean() < 0.55
    assert 0.3 < label[~mine & day.isin(SURGE)].mean() < 0.7
