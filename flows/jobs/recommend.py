"""The flow `recommend`: the best items for every active user, computed once per user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from cluster import home
from cluster.home import store
from cluster.registry import resolve
from cluster.registry.resolve import ResolvedModel
from flows.plan import local_source
from flows.runs.prefect_artifacts import called, named, place, show, slug
from flows.runs.stage import say, without_tracebacks
from flows.stage_code import stage_code
from gpt2.data.sources import left_out, source_id
from gpt2.store.artifact import Artifact, Key, Store
from gpt2.tasks.recommendation.config import RecommendConfig
from gpt2.tasks.recommendation.page import Page, markdown, render
from gpt2.tasks.recommendation.recommend import catalogue, histories
from gpt2.tasks.recommendation.recommend import recommend as recommend_to


@task(name="recommend to users")
def recommend_part(
    parts: Store,
    key: Key,
    users: pd.DataFrame,
    config: RecommendConfig,
    model: ResolvedModel,
    writer: ResolvedModel | None,
) -> Artifact:
    """Return the recommendations of some users as an artifact, made unless it is complete."""

    def build(out: Path) -> dict[str, Any]:
        loaded: Any = resolve.load(model.address, "recommendation")
        given: Any = (resolve.load(writer.address, "reasons").predictor, writer.address) if writer else ()
        table = recommend_to(loaded.predictor, catalogue(loaded.directory), users, config, model.address, *given)
        table.to_parquet(out / "recommendations.parquet", index=False)
        return {"users": len(users), "rows": len(table)}

    return parts.make(key, build)


@flow(
    name="recommend",
    flow_run_name=named(lambda config: called("recommend", place(config.source))),
    task_runner=ThreadPoolTaskRunner(max_workers=2),
)
def recommend(config: RecommendConfig = RecommendConfig()) -> dict[str, Any]:  # noqa: B008 - settings are frozen
    """Recommend items to every active user, as Parquet with scores, model version and reasons, and as a page.

    A reason is a fact, or a sentence of the writer that passed all checks. Each user appears once, also if a run is
    killed and repeated. With the same interactions and models there is nothing to do.

    Args:
        config: The interactions, the models, and the number of items.
    """
    without_tracebacks()
    model, writer = resolve.resolve_model(config.model), resolve.resolve_model(config.writer) if config.writer else None
    inputs = {"interactions": source_id(config.source), "model": model.identity}
    if writer:
        inputs["writer"] = writer.identity
    key = Key(
        "recommendations", config.identity(), inputs, stage_code("recommend", *(["write reasons"] if writer else []))
    )
    looked_at = Key("recommendations-page", {}, {"recommendations": key.id}, stage_code("draw recommendations"))
    before, drawn = store().find(key), store().find(looked_at)
    made = before
    if made is None or drawn is None:
        if others := left_out([config.source]):
            say(f"interactions: {others}")
        directory = resolve.load(model.address, "recommendation").directory
        users = histories(local_source(config.source), config, directory)
        made = made or make(key, users, config, model, writer)
        drawn = draw(looked_at, made, users, model, writer)
    page = home.keep(slug(f"recommend-{model.name}"), drawn.file("page.html").read_text("utf-8"))
    file = made.file("recommendations.parquet")
    show(
        create_markdown_artifact,
        markdown=f"{drawn.file('page.md').read_text('utf-8')}\nThe page: `{page}`; Parquet: `{file}`\n",
        key="recommendations",
        description="Recommendations",
    )
    outcome = "nothing is new" if before else "made"
    size = f"{made.info['users']:,} users, {made.info['rows']:,} rows"
    say(f"recommendations {outcome}: {size} in {made.path}; page: {page}")
    return {
        "users": made.info["users"], "new": before is None, "file": str(file), "page": str(page), "model": model.address
    }  # fmt: skip


def make(
    key: Key, users: pd.DataFrame, config: RecommendConfig, model: ResolvedModel, writer: ResolvedModel | None
) -> Artifact:
    """Return the recommendations of all users, joined from parts of `batch_users` users. Parts are kept until all are
    made."""

    def build(out: Path) -> dict[str, Any]:
        parts = []
        for start in range(0, len(users), config.batch_users):
            some = users.iloc[start : start + config.batch_users]
            spec = {**key.spec, "users": some.index.tolist()}
            part = Key("recommended", spec, key.inputs, key.code)
            parts.append(recommend_part(Store(out / "_parts"), part, some, config, model, writer))
            say(f"recommended to {min(start + config.batch_users, len(users)):,} of {len(users):,} users")
        files = [part.file("recommendations.parquet") for part in parts]
        with pq.ParquetWriter(out / "recommendations.parquet", pq.read_schema(files[0])) as table:
            for file in files:
                table.write_table(pq.read_table(file))
        return {"users": len(users), "rows": sum(part.info["rows"] for part in parts)}

    return store().make(key, build)


def draw(key: Key, made: Artifact, users: pd.DataFrame, model: ResolvedModel, writer: ResolvedModel | None) -> Artifact:
    """Draw the page of recommendations as HTML, and a short one as Markdown."""

    def build(out: Path) -> None:
        table = pd.read_parquet(made.file("recommendations.parquet"))
        items = catalogue(resolve.load(model.address, "recommendation").directory)
        page = Page(model.address, model.metric, writer.address if writer else "", table, users["chosen"], items)
        (out / "page.html").write_text(render(page), "utf-8")
        (out / "page.md").write_text(markdown(page), "utf-8")

    return store().make(key, build)
