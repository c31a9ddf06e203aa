"""`gpt2 monitor` and `gpt2 recommend`: the scheduled jobs, which use the champions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from flows.commands.console import Changes, out, prefect


def monitor(
    *sources: str,
    config: Path | None = None,
    set_: Changes = None,
    demo: Annotated[bool, Parameter(negative="")] = False,
):
    """Score new posts with the champion, count them by topic and time, raise alerts, write the page.

    Each post counts once. For newer posts run it again, or on a schedule (deployment `monitor-sentiment`).

    Example: gpt2 monitor inbox/ --set time_field=created_at --set window=day

    Args:
        sources: folders, files, globs or fsspec URLs of posts: .jsonl, .csv or .parquet.
        config: a YAML file of the monitor's settings (`gpt2.monitoring.config`).
        set_: a setting, as in min_posts=50; may be given several times.
        demo: replay the sample posts, with a planted surge.
    """
    from flows.config import settings
    from gpt2.monitoring.config import MonitorConfig

    given: dict[str, Any] = {"sources": list(sources) or None}
    note = ""
    if demo:
        if sources:
            raise ValueError(f"--demo: replays the sample posts and reads no {', '.join(sources)}; give one of the two")
        given |= {"name": "demo", "time_field": "time", "window": "day", "sources": ["demo"]}
    chosen = settings(MonitorConfig, given, config, set_ or ())
    from cluster.registry.resolve import resolve_model

    model = resolve_model(chosen.model)
    if demo:
        note = prepare_demo()
        chosen = chosen.model_copy(update={"sources": [str(demo_folder())]})
    out.print(f"Starting Prefect; {model.address} will score ...")
    with prefect():
        from flows.jobs.monitor import monitor_sentiment

        result = monitor_sentiment(chosen, note)
    if "page" not in result:
        out.print(f"Nothing to do: there are no posts in {', '.join(chosen.sources)}.", markup=False)
        return
    for text in result["alerts"][:10]:
        out.print(f"[red]alert[/] {text}" if "[" not in text else text)
    for text in [*result["undecided"], *result["drift"]]:
        out.print(text, markup=False)
    out.print(f"{result['new_posts']:,} new posts, {result['posts']:,} in all. Parquet: {result['index']}")
    out.print(f"Page: {result['page']}")
    out.print(f"Texts to label next: {result['to_label']}")


def demo_folder() -> Path:
    """Return the folder of the replay."""
    from cluster.home import samples

    return samples() / "replay"


def prepare_demo() -> str:
    """Write the replay; return a note on it for the page."""
    from cluster.home import samples
    from gpt2.data.samples import resolve
    from gpt2.monitoring import demo as monitoring_demo

    parts = list(monitoring_demo.write(Path(resolve("sample:posts", samples())), demo_folder()))
    out.print(
        f"The sample posts, replayed over {monitoring_demo.DAYS} days, are in {len(parts)} files in {demo_folder()}"
    )
    return monitoring_demo.NOTE


def recommend(
    source: str | None = None,
    *,
    config: Path | None = None,
    set_: Changes = None,
):
    """Recommend items to every active user, as Parquet with scores, model version and reasons.

    Reasons are facts. If a writer is set, they are also its sentences that pass all checks.

    Example: gpt2 recommend interactions.csv --set top_k=20 --set writer=models:/gpt2-reasons@champion

    Args:
        source: a file of interactions, or a folder with interactions.*; default: the sample.
        config: a YAML file of settings (`gpt2.tasks.recommendation.recommend`).
        set_: a setting, as in active_days=30; may be given several times.
    """
    from flows.config import settings
    from gpt2.tasks.recommendation.config import RecommendConfig

    chosen = settings(RecommendConfig, {"source": source}, config, set_ or ())
    from cluster.registry.resolve import resolve_model

    writes = f", {resolve_model(chosen.writer).address} will write reasons" if chosen.writer else ""
    out.print(f"Starting Prefect; {resolve_model(chosen.model).address} will rank{writes} ...")
    with prefect():
        from flows.jobs.recommend import recommend as run

        result = run(chosen)
    remark = "" if result["new"] else " (nothing is new since then)"
    out.print(f"Recommendations for {result['users']:,} users{remark}: {result['file']}")
    out.print(f"Page: {result['page']}")
