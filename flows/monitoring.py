"""The scheduled monitor: new posts, each scored once by the champion; an index by topic; alerts and drift as events."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from cluster import monitoring, pages
from cluster.champion import Used, used
from cluster.connect import disconnect
from cluster.home import store
from flows import telling
from flows.artifacts import show, slug
from flows.stage import say, without_tracebacks
from flows.turns import claim
from gpt2 import compaction, inbox, index, scored
from gpt2.artifact import Artifact, Key, digest
from gpt2.monitor import MonitorConfig
from gpt2.monitor_page import Page, drift_sentences, markdown, render, undecided
from gpt2.pages.html import CODE as PAGE

COUNTED = ["time", "topics", "label", "confidence", "version", "cut"]
"""Of each scored post what the index is made of."""
EXAMPLES = 3
"""Posts shown with an alert."""
CODE = (
    "gpt2.index", "gpt2.surges", "gpt2.significance", "gpt2.drift", "gpt2.posts", "gpt2.tables", "gpt2.inbox",
    "gpt2.scored", "gpt2.topics", "gpt2.monitor_page", "gpt2.curves", "cluster.monitoring", "flows.monitoring",
    "gpt2.pages.markdown", *PAGE, "gpt2.pages:templates/monitor.html.j2", "gpt2.pages:templates/curve.svg.j2",
)  # fmt: skip


@task(name="read posts")
def read_posts(config: MonitorConfig) -> tuple[pd.DataFrame, list[str]]:
    """The posts of all files; unchanged files are not read again."""
    return inbox.read_files(store(), config, say)


@task(name="score posts")
def score_posts(arrived: pd.DataFrame, config: MonitorConfig, model: Used, known: Artifact | None) -> int:
    """Score what is new, a batch at a time; returns how many posts that were."""
    posts, new = scored.to_score(arrived, scored.batches(store(), config), model.identity, model.address, config)
    if len(posts) > new:
        say(f"{len(posts) - new:,} earlier posts are scored again by {model.address}, to be its history")
    if len(posts):
        monitoring.score(store(), posts, config, model, known, say)
    return new


@task(name="build the index")
def build_index(config: MonitorConfig, model: Used, known: Artifact | None, troubles: list[str], note: str) -> Artifact:
    """The index of all scored posts, as Parquet, with alerts, drift and the page."""
    made = scored.batches(store(), config)
    until = inbox.present().floor(index.FREQUENCY[config.window])
    posts = scored.so_far(scored.scored(made, model.identity, COUNTED))
    latest = posts["time"].max() if len(posts) else until
    # Once the window of the latest post is over, time alone changes nothing.
    until = min(until, latest.floor(index.FREQUENCY[config.window]) + index.STEP[config.window])

    def build(out: Path) -> dict[str, Any]:
        table = index.aggregate(posts, config, until, model.address)
        table.to_parquet(out / "index.parquet", index=False)
        found = index.alerts(table, config)
        wanted = pd.DataFrame(
            [(a.topic, a.start, a.start + a.windows * index.STEP[config.window]) for a in found],
            columns=["topic", "start", "end"],
        )
        examples = list(scored.examples_of(made, model.identity, wanted, EXAMPLES, config.abstain_below))
        drift = scored.latest_drift(made, config, model.identity, known) if known else None
        usual = scored.usual_undecided(config, known) if known else None
        cut = int(posts["cut"].eq(True).sum())
        page = Page(
            config, model.address, model.metric, table, found, examples, drift, len(posts), troubles, note, usual, cut
        )
        (out / "page.html").write_text(render(page), "utf-8")
        (out / "page.md").write_text(markdown(page, str(page_path(config))), "utf-8")
        told = {
            "alerts": [
                {**asdict(a), "start": a.start.isoformat(), "share": a.share, "text": a.sentence(config.window)}
                for a in found
            ],
            "compared": bool(page.drift),
            "drifted": {d.measure: round(d.psi, 3) for d in page.drifted},
            "drift": drift_sentences(page),
            "undecided": undecided(page)[0],
            "latest": min(latest, until + index.STEP[config.window]).isoformat(),
        }
        (out / "told.json").write_text(json.dumps(told, indent=1))
        left = int((posts["confidence"] < config.abstain_below).sum())
        return {"posts": len(posts), "undecided": left, "topics": table["topic"].nunique(), "alerts": len(found)}

    spec = {**config.identity(), "until": until.isoformat(), "page_topics": config.page_topics, "note": note}
    inputs = {"batches": scored.contents(made), "model": model.identity, "troubles": digest(troubles)}
    inputs["reference"] = known.id if known else ""
    return store().make(Key(f"index-{config.name}", spec, inputs, CODE), build)


def page_path(config: MonitorConfig) -> Path:
    """Where the latest page lies."""
    return pages.path(f"monitor-{config.name}")


@task(name="tell")
def tell(config: MonitorConfig, model: Used, built: Artifact) -> list[str]:
    """Send the events that were not sent before."""
    return telling.send_events(config, model, built, page_path(config))


@flow(name="monitor-sentiment", task_runner=ThreadPoolTaskRunner(max_workers=4))
def monitor_sentiment(config: MonitorConfig = MonitorConfig(), note: str = "") -> dict[str, Any] | State:  # noqa: B008
    """New posts are scored by the champion and counted by topic and time; alerts and drift are told as events.

    Each post counts once, whatever is killed in between. Ends at once where there are no new posts.

    Args:
        config: What it reads, how it counts, and when it raises an alert.
        note: A sentence that the page says first.
    """
    without_tracebacks()
    with claim(f"monitor-{config.name}") as holder:
        if holder is not None:
            return Completed(
                name="Duplicate", message=f"{holder['run']} is monitoring the same; this run leaves it to it"
            )
        try:
            return watch(config, note)
        finally:
            disconnect()


def watch(config: MonitorConfig, note: str) -> dict[str, Any] | State:
    """The flow's body."""
    model = used(config.model)
    arrived, troubles = read_posts(config)
    if arrived.empty and not scored.batches(store(), config):
        return Completed(message=f"no posts in {', '.join(config.sources)}", data={"new_posts": 0, "alerts": []})
    known = monitoring.reference(store(), config, model)
    new = score_posts(arrived, config, model, known)
    built = build_index(config, model, known, troubles, note)
    path = pages.keep(f"monitor-{config.name}", built.file("page.html").read_text("utf-8"))
    show(
        create_markdown_artifact,
        markdown=built.file("page.md").read_text("utf-8"),
        key=slug(f"monitor-{config.name}"),
        description=f"Sentiment of {config.name}",
    )
    sent = tell(config, model, built)
    compaction.compact(store(), config, say)
    a_day_ago = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 86400))
    compaction.keep_latest(store(), built, a_day_ago)
    said = f"{new:,} new posts" if new else "no new posts"
    left = f", {built.info['undecided']:,} of them undecided" if config.abstain_below else ""
    say(f"{said}; {built.info['posts']:,} in all{left}; alerts: {built.info['alerts']}; the page is {path}")
    told = json.loads(built.file("told.json").read_text())
    return {
        "new_posts": new, "posts": built.info["posts"], "alerts": [a["text"] for a in told["alerts"]],
        "drift": told["drift"], "undecided": told["undecided"], "told": sent,
        "page": str(path), "index": str(built.path), "model": model.address,
    }  # fmt: skip
