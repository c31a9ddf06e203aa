"""The flow `monitor-sentiment`: new posts are scored once by the champion and counted; alerts and drift are events.

An alert is sent once; drift when it begins, and again while it lasts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.states import Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from cluster import home
from cluster.batch import scoring
from cluster.connect import disconnect
from cluster.home import store
from cluster.registry.resolve import ResolvedModel, resolve_model
from flows.jobs.retrain import RetrainPlan
from flows.runs import events
from flows.runs.ending import claim
from flows.runs.prefect_artifacts import called, named, places, show, slug
from flows.runs.stage import say, without_tracebacks
from flows.stage_code import stage_code
from gpt2.monitoring import history as monitoring_history
from gpt2.monitoring import index
from gpt2.monitoring import posts as monitoring_posts
from gpt2.monitoring import scored as monitoring_scored
from gpt2.monitoring.alerts import compare
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.history import EMPTY, History
from gpt2.monitoring.page import Page, drift_sentences, markdown, render, undecided
from gpt2.monitoring.posts import present
from gpt2.store.artifact import Artifact, Key, digest, write_atomically
from gpt2.tasks.sentiment import labelling

ALERT_MAX_AGE = pd.Timedelta(days=7)
"""Alerts that began longer before the latest post appear on the page, but are not sent as events."""
Facts = dict[str, Any]


def send_events(config: MonitorConfig, model: ResolvedModel, built: Artifact, page: Path) -> list[str]:
    """Send alerts and drift that were not sent before, as events; return their sentences."""
    summary = json.loads(built.file("told.json").read_text())
    recent = pd.Timestamp(summary["latest"]) - ALERT_MAX_AGE
    common = {"monitor": config.name, "version": model.address, "page": str(page)}
    sent = []
    for alert in summary["alerts"]:
        if pd.Timestamp(alert["start"]) >= recent:
            facts = {**common, **alert, "window": config.window}
            identity = {"monitor": config.name, "event": events.SENTIMENT, "topic": alert["topic"]}
            sent += once(Key("told", {**identity, "start": alert["start"]}), events.SENTIMENT, model, facts)
    if summary["compared"]:
        sent += send_drift(config, model, summary, common)
    return sent


def send_drift(config: MonitorConfig, model: ResolvedModel, summary: Facts, common: Facts) -> list[str]:
    """Send an event of drift: when a measure rises above the threshold, and every `drift_again_days` while it stays
    there.

    Each record (of an event, or of the end of drift) names the record before it. So an event that a killed run sent
    without recording it is the same event when it is sent again.
    """
    last, drifted = latest_record(config, model), sorted(summary["drifted"])
    known = last.manifest["spec"]["drifted"] if last else []
    spec = {"version": model.address, "drifted": sorted({*drifted, *known}), "after": last.id if last else ""}
    key = Key(records(config), spec)
    if not drifted:
        if known:  # the next drift is a new one
            store().make(Key(key.kind, {**spec, "drifted": []}), lambda out: None)
        return []
    age = present() - pd.Timestamp(last.manifest["created"]) if last else pd.Timedelta(0)
    if set(drifted) <= set(known) and age < pd.Timedelta(days=config.drift_again_days):
        return []

    def facts() -> Facts:
        figures = {"drifted": summary["drifted"], "threshold": config.drift_threshold}
        return {**common, **figures, "text": " ".join(summary["drift"]), "training": training_of(model)}

    return once(key, events.DRIFT, model, facts)


def records(config: MonitorConfig) -> str:
    """Return the artifact kind of this monitor's records of drift."""
    return f"drift-{config.name}"


def latest_record(config: MonitorConfig, model: ResolvedModel) -> Artifact | None:
    """Return the latest record of drift of this version; None if there is none."""
    all_records = [store().get(records(config), id) for id in store().ids(records(config))]
    own = [made for made in all_records if made and made.manifest["spec"]["version"] == model.address]
    followed = {made.manifest["spec"]["after"] for made in own}
    return next((made for made in own if made.id not in followed), None)


def training_of(model: ResolvedModel) -> Facts:
    """Return how the model was trained, for the event's receiver (`flows.jobs.retrain` trains it again)."""
    try:
        return RetrainPlan.of(model.address).facts()
    except ValueError as error:
        return {"flow": None, "why": str(error)}


def once(key: Key, event: str, model: ResolvedModel, facts: Facts | Callable[[], Facts]) -> list[str]:
    """Send an event and record it; return its sentence in a list, or [] if it was sent before."""
    if store().find(key):
        return []
    facts = facts() if callable(facts) else facts
    say(f"{event}: {facts['text']}")
    if not events.emit_once(event, model.name, key.id, **facts):
        say(f"{event}: Prefect does not accept it now; the next run sends it again")
        return []

    def build(out: Path) -> None:
        (out / "facts.json").write_text(json.dumps(facts, indent=1))

    store().make(key, build)
    return [facts["text"]]


TO_LABEL = 50
"""Number of posts that the monitor asks people to label."""
EXAMPLES = 3
"""Number of posts shown with an alert."""


@task(name="read posts")
def read_posts(config: MonitorConfig, past: History) -> tuple[pd.DataFrame, list[str], set[str]]:
    """Return the posts of files that `past` does not count, remarks on bad rows, and the copies that are whole."""
    return monitoring_posts.read_files(store(), config, say, counted=past.files)


@task(name="score posts")
def score_posts(
    arrived: pd.DataFrame, config: MonitorConfig, model: ResolvedModel, known: Artifact | None, past: History
) -> int:
    """Score new posts in batches; return their number."""
    made = monitoring_scored.batches(store(), config)
    posts, new = monitoring_history.to_score(arrived, made, past, model.identity, model.address, config)
    if len(posts) > new:
        say(f"{len(posts) - new:,} earlier posts are scored again by {model.address}, for its history")
    if len(posts):
        scoring.score(store(), posts, config, model, known, say)
    return new


@task(name="build the index")
def build_index(
    config: MonitorConfig,
    model: ResolvedModel,
    known: Artifact | None,
    troubles: list[str],
    note: str,
    past: History = EMPTY,
    whole: frozenset[str] = frozenset(),
) -> Artifact:
    """Build the index of all scored posts, as Parquet, with alerts, drift and the page.

    The posts that `past` counts are not read again. `whole` are the copies of files whose posts are all scored.
    """
    made = monitoring_scored.batches(store(), config)
    until, limit = present().floor(index.FREQUENCY[config.window]), present().floor("h") + monitoring_posts.AHEAD
    seen = model.identity, model.address
    counted, complete = monitoring_history.grown(past, made, config, *seen, limit)
    posts, latest = len(counted.ids), counted.latest if len(counted.ids) else until
    if complete:
        history = replace(counted, files=past.files | whole)
        monitoring_history.save(store(), config, *seen, history)
    # Stop at the window after the latest post, so that the index does not change with time alone.
    until = min(until, latest.floor(index.FREQUENCY[config.window]) + index.STEP[config.window])

    def build(out: Path) -> dict[str, Any]:
        table = index.finished(counted.sums, config, until)
        table.to_parquet(out / "index.parquet", index=False)
        alerts = index.alerts(table, config)
        wanted = pd.DataFrame(
            [(a.topic, a.start, a.start + a.windows * index.STEP[config.window]) for a in alerts],
            columns=["topic", "start", "end"],
        )
        near = monitoring_history.near(made, counted, wanted)
        examples = list(monitoring_scored.examples_of(near, model.identity, wanted, EXAMPLES, config.abstain_below))
        reference = pd.read_parquet(known.file("reference.parquet")) if known else None
        drift = None if reference is None else compare(reference, counted.tail)
        usual = monitoring_scored.usual_undecided(config, known) if known else None
        page = Page(
            config, model.address, model.metric, table, alerts, examples, drift, posts, troubles, note, usual,
            counted.cut,
        )  # fmt: skip
        latest_posts = monitoring_history.latest(made, counted, config, limit)
        to_label(latest_posts, model, config).to_csv(out / "label.csv", index=False)
        (out / "page.html").write_text(render(page), "utf-8")
        (out / "page.md").write_text(markdown(page, str(page_path(config))), "utf-8")
        summary = {
            "alerts": [
                {**asdict(a), "start": a.start.isoformat(), "share": a.share, "text": a.sentence(config.window)}
                for a in alerts
            ],
            "compared": bool(page.drift),
            "drifted": {d.measure: round(d.psi, 3) for d in page.drifted},
            "drift": drift_sentences(page),
            "undecided": undecided(page)[0],
            "latest": min(latest, until + index.STEP[config.window]).isoformat(),
        }
        (out / "told.json").write_text(json.dumps(summary, indent=1))
        all_posts = counted.sums[counted.sums["topic"] == index.ALL]
        left = int((all_posts["posts"] - all_posts["decided"]).sum())
        return {"posts": posts, "undecided": left, "topics": table["topic"].nunique(), "alerts": len(alerts)}

    spec = {**config.identity(), "until": until.isoformat(), "page_topics": config.page_topics, "note": note}
    inputs = {"batches": monitoring_scored.contents(made), "model": model.identity, "troubles": digest(troubles)}
    inputs["reference"] = known.id if known else ""
    return store().make(Key(f"index-{config.name}", spec, inputs, stage_code("index posts")), build)


def to_label(made: list[Artifact], model: ResolvedModel, config: MonitorConfig) -> pd.DataFrame:
    """Return which of the latest posts to label next: unsure, unlike the training texts, and unlike each other."""
    wanted = ["time", "text", "topics", "label", "confidence"]
    posts = monitoring_scored.without_future(monitoring_scored.scored(made, model.identity, wanted))
    posts = posts.nlargest(config.drift_posts, "time")
    examples = store().get("sentiment-examples", model.examples) if model.examples else None
    known = pd.read_parquet(examples.file("train.parquet"), columns=["text"])["text"].tolist() if examples else []
    topics = [names[0] if len(names) else None for names in posts["topics"]]
    facts = {"topic": topics, "suggested": posts["label"], "unsure": 1 - posts["confidence"]}
    return labelling.choose(posts[["text", "confidence"]].assign(**facts), known, TO_LABEL)


def page_path(config: MonitorConfig) -> Path:
    """Return the path of the latest page."""
    return home.path(f"monitor-{config.name}")


@task(name="tell")
def report_events(config: MonitorConfig, model: ResolvedModel, built: Artifact) -> list[str]:
    """Send the events that were not sent before; return their sentences."""
    return send_events(config, model, built, page_path(config))


@flow(
    name="monitor-sentiment",
    flow_run_name=named(lambda config, note: called(f"monitor {config.name}", places(config.sources))),
    task_runner=ThreadPoolTaskRunner(max_workers=4),
)
def monitor_sentiment(config: MonitorConfig = MonitorConfig(), note: str = "") -> dict[str, Any] | State:  # noqa: B008
    """Score new posts with the champion and count them by topic and time; alerts and drift are sent as events.

    Each post counts once, also if runs are killed. Ends at once if there are no new posts.

    Args:
        config: Which posts it reads, how it counts them, and when it raises an alert.
        note: A sentence at the top of the page.
    """
    without_tracebacks()
    with claim(f"monitor-{config.name}") as holder:
        if holder is not None:
            return Completed(name="Duplicate", message=f"{holder['run']} is monitoring the same, so this run ends")
        try:
            return watch(config, note)
        finally:
            disconnect()


def watch(config: MonitorConfig, note: str) -> dict[str, Any] | State:
    """Read, score, index and report the posts; return the figures of the run."""
    model = resolve_model(config.model)
    made = monitoring_scored.batches(store(), config)
    past = monitoring_history.load(store(), config, model.identity, model.address, made)
    arrived, troubles, whole = read_posts(config, past)
    if arrived.empty and not made:
        return Completed(message=f"no posts in {', '.join(config.sources)}", data={"new_posts": 0, "alerts": []})
    known = scoring.reference(store(), config, model)
    new = score_posts(arrived, config, model, known, past)
    built = build_index(config, model, known, troubles, note, past, frozenset(whole))
    path = home.keep(f"monitor-{config.name}", built.file("page.html").read_text("utf-8"))
    show(
        create_markdown_artifact,
        markdown=built.file("page.md").read_text("utf-8"),
        key=slug(f"monitor-{config.name}"),
        description=f"Sentiment of {config.name}",
    )
    asked = pd.read_csv(built.file("label.csv"))
    file = home.path(f"label-{config.name}").with_suffix(".csv")
    write_atomically(file, built.file("label.csv").read_bytes())
    show(
        create_table_artifact,
        table=json.loads(asked.drop(columns="label").to_json(orient="records")),
        key=slug(f"label-{config.name}"),
        description=f"Label next: fill in the column label of {file}, then gpt2 label {config.model} --add {file}",
    )
    sent = report_events(config, model, built)
    monitoring_scored.compact(store(), config, say)
    a_day_ago = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 86400))
    monitoring_scored.keep_latest(store(), built, a_day_ago)
    said = f"{new:,} new posts" if new else "no new posts"
    left = f", {built.info['undecided']:,} of them undecided" if config.abstain_below else ""
    say(f"{said}; {built.info['posts']:,} in all{left}; alerts: {built.info['alerts']}; the page is {path}")
    summary = json.loads(built.file("told.json").read_text())
    return {
        "new_posts": new, "posts": built.info["posts"], "alerts": [a["text"] for a in summary["alerts"]],
        "drift": summary["drift"], "undecided": summary["undecided"], "told": sent,
        "page": str(path), "to_label": str(file), "index": str(built.path), "model": model.address,
    }  # fmt: skip
