"""The scheduled recommendations: the best items for every active user, each user once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from cluster import champion
from cluster.champion import Used
from cluster.home import store
from flows.artifacts import show
from flows.plan import local_source
from flows.stage import say, without_tracebacks
from gpt2.artifact import Artifact, Key, Store
from gpt2.reasons import GENERATED
from gpt2.recommending import RecommendConfig, catalogue, histories
from gpt2.recommending import recommend as recommend_to
from gpt2.report import flat
from gpt2.sources import source_id

CODE = (
    "gpt2.catalogue", "gpt2.catalogue_files", "gpt2.labelled", "gpt2.posts", "gpt2.recommending", "gpt2.reasons",
    "gpt2.search", "gpt2.tasks.recommendation", "gpt2.heads", "gpt2.hybrid", "gpt2.baselines", "gpt2.model",
)  # fmt: skip
WRITING = (
    "gpt2.tasks.reasons", "gpt2.reasoner", "gpt2.replies", "gpt2.copying", "gpt2.sentences", "gpt2.generate",
    "gpt2.sampling", "gpt2.decode",
)  # fmt: skip
SHOWN = 5


@task(name="recommend to users")
def recommend_part(
    parts: Store, key: Key, users: pd.Series, config: RecommendConfig, model: Used, writer: Used | None
) -> Artifact:
    """The recommendations of some users, as an artifact: what is complete is not done again."""

    def build(out: Path) -> dict[str, Any]:
        loaded: Any = champion.load(model.address, "recommendation")
        given: Any = (champion.load(writer.address, "reasons").predictor, writer.address) if writer else ()
        table = recommend_to(loaded.predictor, catalogue(loaded.directory), users, config, model.address, *given)
        table.to_parquet(out / "recommendations.parquet", index=False)
        return {"users": len(users), "rows": len(table)}

    return parts.make(key, build)


@flow(name="recommend", task_runner=ThreadPoolTaskRunner(max_workers=2))
def recommend(config: RecommendConfig = RecommendConfig()) -> dict[str, Any]:  # noqa: B008 - settings are frozen
    """The best items for every active user, as Parquet with scores, model version and reasons.

    A reason is a fact, or a sentence that a writer wrote and that passed all checks. Each user once, also when it is
    killed and run again. With the same interactions and the same models there is nothing to do.

    Args:
        config: Whose choices, which models, how many items.
    """
    without_tracebacks()
    model, writer = champion.used(config.model), champion.used(config.writer) if config.writer else None
    inputs = {"interactions": source_id(config.source), "model": model.identity}
    if writer:
        inputs["writer"] = writer.identity
    key = Key("recommendations", config.identity(), inputs, (*CODE, *(WRITING if writer else ())))
    before = store().find(key)
    made = before or make(key, config, model, writer)
    table = pd.read_parquet(made.file("recommendations.parquet"))
    show(
        create_markdown_artifact,
        markdown=page(table, made, model),
        key="recommendations",
        description="Recommendations",
    )
    told = "nothing is new" if before else "made"
    say(f"recommendations {told}: {made.info['users']:,} users, {made.info['rows']:,} rows in {made.path}")
    file = str(made.file("recommendations.parquet"))
    return {"users": made.info["users"], "new": before is None, "file": file, "model": model.address}


def make(key: Key, config: RecommendConfig, model: Used, writer: Used | None) -> Artifact:
    """All users' recommendations, put together from parts of `batch_users`, which are scratch: kept until all are."""
    users = histories(Path(local_source(config.source)), config)

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


def page(table: pd.DataFrame, made: Artifact, model: Used) -> str:
    """Markdown: how many, how varied, and some to look at."""
    items, most = table["item"].nunique(), table["title"].value_counts()
    lines = [
        "# Recommendations", "",
        f"{made.info['users']:,} users, {len(table):,} recommendations of {items:,} items by {model.address}; "
        f"“{flat(str(most.index[0]))}” is recommended to {most.iloc[0] / max(made.info['users'], 1):.0%} of them.", "",
        f"Parquet: `{made.path / 'recommendations.parquet'}`", *reasons(table),
    ]  # fmt: skip
    for user, rows in list(table.groupby("user", sort=False))[:SHOWN]:
        lines += ["", f"## User {flat(str(user))}", ""]
        lines += [f"{r.rank}. **{flat(r.title)}** — {flat(r.reason)}" for r in rows.head(SHOWN).itertuples()]
    return "\n".join(lines) + "\n"


def reasons(table: pd.DataFrame) -> list[str]:
    """Markdown: what became of written reasons; nothing where there is no writer."""
    asked = table[(table["reason_kind"] == GENERATED) | (table["withheld"] != "")]
    if asked.empty:
        return []
    shown, counts = (asked["reason_kind"] == GENERATED).mean(), asked["withheld"].replace("", "it is shown")
    lines = [f"| {why} | {n:,} |" for why, n in counts.value_counts().items()]
    told = f"Of {len(asked):,} reasons that were written {shown:.0%} are shown; facts stand in place of the others."
    return ["", told, "", "| the best sentence for a reason | |", "|---|---|", *lines]
