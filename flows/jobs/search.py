"""The flow `search`: trials of fine-tuning settings on Ray; the best become a file that the pipeline takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from cluster.batch import search as batch_search
from cluster.home import store
from cluster.tracking.runs import Run
from cluster.training.stopping import politely
from flows.jobs.search_plan import COMMANDS, REDUCTION, SearchConfig, SearchPlan, as_settings, best_of, rows, table
from flows.runs.ending import HOOKS, carry_out, turn
from flows.runs.prefect_artifacts import image, show, slug
from flows.runs.stage import make, parent_of_all, say, speaker
from flows.stages.training import prepare_examples
from gpt2 import search as gpt2_search
from gpt2.evaluation import plots
from gpt2.store.artifact import Artifact
from gpt2.store.model_files import MODEL
from gpt2.training.engine import decided
from gpt2.training_job import TrainingJob


@task(name="search", task_run_name="search {config.task}")
def search_task(search: SearchPlan, config: SearchConfig) -> Artifact:
    """Prepare the task's examples, train the candidates, and keep their results as an artifact."""
    name, settings = config.task, search.candidates[0].settings
    examples = prepare_examples(name, settings, search.plan)

    def build(out: Path, run: Run) -> dict[str, Any]:
        jobs = jobs_of(search, examples, out)
        cluster = settings.task_cluster(name)
        curves = batch_search.run(jobs, search.steps, REDUCTION, config.parallel, cluster, out, speaker())
        results = rows(search, curves)
        best = best_of(results)
        (out / "candidates.json").write_text(json.dumps(results, indent=1, allow_nan=False))
        (out / "best.yaml").write_text(as_settings(search, best))
        plots.search(results, best["candidate"]).savefig(out / "candidates.png", metadata={"Software": None})
        run.files(out / "best.yaml")
        run.files(out / "candidates.png")
        own = results[0]["validation_loss"]
        return {
            "candidates": len(results),
            "stopped_early": sum(row["state"] == "stopped early" for row in results),
            "failed": sum(row["state"] == "failed" for row in results),
            "best": best["candidate"],
            "best_validation_loss": best["validation_loss"],
            **({"presets_validation_loss": own} if results[0]["state"] == "ended" and own is not None else {}),
        }

    return make(f"search-{name}", search.key, config.model_dump(mode="json"), build)


def jobs_of(search: SearchPlan, examples: Artifact, out: Path) -> list[TrainingJob]:
    """Return a job for each candidate, without the files of the test split."""
    name = search.config.task
    base = store().require("base", search.plan.base.id)
    tokenizer = store().require("tokenizer", search.plan.tokenizer.id)
    seen = gpt2_search.without_test(examples.path, out / "_examples")
    gpu = search.candidates[0].settings.task_cluster(name).use_gpu
    every = gpt2_search.interval(search.steps, REDUCTION)
    return [
        TrainingJob(
            name=name,
            train=decided(gpt2_search.watched(c.train, every, search.config.eval_samples), gpu),
            tokenizer=str(tokenizer.path),
            output=str(out / "_candidates" / f"{number:03d}"),
            base=str(base.path / MODEL),
            examples=str(seen),
            adaptation=c.adaptation,
        )
        for number, c in enumerate(search.candidates)
    ]


@flow(
    name="search",
    flow_run_name="search {config.task} · {config.trials} candidates",
    task_runner=ThreadPoolTaskRunner(max_workers=4),
    **HOOKS,
)
def search(config: SearchConfig) -> Any:
    """Search better fine-tuning settings of a task, by its validation loss. The test split is not used. Finished work
    is not repeated.

    Args:
        config: The task, the settings that may change, and the number of candidates.
    """
    return carry_out(lambda: SearchPlan.of(config), searched, publish)


def searched(search: SearchPlan) -> dict[str, Any]:
    """Run the search and show it; return the path of the best settings and the figures."""
    with turn(), parent_of_all():
        with politely():
            made = search_task(search, search.config)
        publish(search)
    say(f"the best settings: {made.file('best.yaml')}")
    return {"best": str(made.file("best.yaml")), **made.info}


def publish(search: SearchPlan) -> None:
    """Show a table of all candidates, and a page with their figure and the best settings, on this flow run."""
    made = store().require(search.key.kind, search.key.id)
    name, results = search.config.task, json.loads(made.file("candidates.json").read_text())
    title = f"Candidates of the search for {name}"
    show(create_table_artifact, table=table(results), key=slug(f"candidates-of-{name}"), description=title)
    picture = image(made.file("candidates.png"), "candidates")
    best = made.file("best.yaml").read_text()
    text = f"# {title}\n\n{picture}\n\n```yaml\n{best}```\n\n{how_to_go_on(search, made.file('best.yaml'))}"
    show(create_markdown_artifact, markdown=text, key=slug(f"search-{name}"), description=f"Best settings of {name}")


def how_to_go_on(search: SearchPlan, best: Path) -> str:
    """Return Markdown that says which fields of which forms take the best settings."""
    name, preset = search.config.task, search.config.preset
    text = f"In the form of `pipeline`: Preset `{preset}`, File `{best}`.\n"
    if command := COMMANDS.get(name):
        tasks = json.dumps(yaml.safe_load(best.read_text())["tasks"], indent=1)
        text += f"\nIn that of `{command.split()[0]}`: Preset `{preset}`, and as Tasks\n\n```json\n{tasks}\n```\n"
    return text
