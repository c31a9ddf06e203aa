"""The `gpt2` command. Heavy libraries are loaded after the settings have been accepted."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from cluster.home import configure
from flows.commands import benchmark, importing, jobs, learning, search
from flows.commands import registry as models
from flows.commands.console import err
from flows.commands.console import tables as out

app = App(
    name="gpt2",
    help="Your own GPT-2: text in, registered models out.",
    version=lambda: __import__("gpt2").__version__,
)

Stage = Literal["pipeline", "tokenize", "pretrain", "finetune", "evaluate", "register", "refresh"]


def run(
    stage: Stage = "pipeline",
    *,
    preset: str = "laptop",
    config: Path | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
):
    """Run the whole pipeline, or one stage of it; `refresh` goes on with new documents. Nothing is done twice.

    Example: gpt2 run --preset laptop --set pretrain.steps=500

    Args:
        stage: the part to run.
        preset: settings to start from: laptop, laptop-long, laptop-modern, smoke, gpt2, gpt2-medium,
            gpt2-large, gpt2-xl.
        config: a YAML file whose settings go over the preset's.
        set_: a setting, as in pretrain.optimizer.learning_rate=1e-3; may be given several times.
        dry_run: print the resolved settings, what would run and how large it is; start nothing.
    """
    from flows.config import resolve
    from flows.plan import make_plan

    settings = resolve(preset, config, set_ or ())
    if stage == "refresh":
        from flows.commands.refresh import refresh_champion

        refresh_champion(settings, dry_run, out)
        return
    plan = make_plan(settings)
    if dry_run:
        from flows.dryrun import describe

        describe(settings, plan, out)
        return
    from flows.plan import registered_before
    from flows.summary import summarize

    if stage == "pipeline" and (rows := registered_before(plan)):
        out.print("Nothing to do: every stage was done before.")
        summarize(plan, rows, out)
        return
    from flows import early

    out.print("Starting Prefect, Ray and MLflow ...")
    early.start(settings)
    from flows.pipeline import STORY, pipeline
    from flows.stage import without_tracebacks
    from flows.turns import turn

    without_tracebacks()
    if stage != "pipeline":
        from cluster.connect import disconnect
        from flows.endings import HOOKS

        try:
            with turn() if stage in ("pretrain", "finetune") else contextlib.nullcontext():
                out.print(STORY[stage].with_options(**HOOKS)(settings))
        finally:
            disconnect()
        return
    with turn():
        result = pipeline(settings)
    summarize(plan, result["registered"], out)


def list_checkpoints():
    """List them: step, tokens seen, validation loss, size, workers.

    Example: gpt2 checkpoints
    """
    from cluster.kept import find
    from flows.tables import checkpoint_table

    found = list(find())
    if not found:
        out.print("There are none: no training is under way or was interrupted.")
        return
    out.print(checkpoint_table(found))


def verify_checkpoints():
    """Read every byte of them and compare it with what was written; exit with 1 where one is damaged.

    Example: gpt2 checkpoints verify
    """
    from cluster.kept import find
    from flows.tables import checkpoint_table

    found = list(find())
    damages = {kept.path: kept.damage() for kept in found}
    out.print(checkpoint_table(found, damages))
    for damage in filter(None, damages.values()):
        err.print(damage, highlight=False, markup=False, soft_wrap=True)
    if any(damages.values()):
        sys.exit(1)


def export_checkpoint(path: Path, output: Path):
    """Write the model that a checkpoint holds, as `transformers` and `gpt2` read it.

    Example: gpt2 checkpoints export .gpt2/store/.partial/base-0123/_checkpoints/step-00000100 model/

    Args:
        path: the checkpoint's folder.
        output: a new folder.
    """
    from cluster.kept import export

    export(path, output)
    out.print(f"The model of {path.name} is in {output}", highlight=False)


def predict(model_uri: str, *, input: Path, output: Path):
    """Apply a registered model to a file.

    Example: gpt2 predict models:/gpt2-sentiment@champion --input posts.txt --output scored.jsonl

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION, or a model's directory.
        input: .txt, a text per line; .jsonl, a string or an object per line; .csv or .parquet with a column `text`.
        output: .jsonl, .csv or .parquet, a row per input.
    """
    from flows.files import read_inputs, write_table
    from gpt2 import load

    inputs = read_inputs(input)
    table = load(model_uri).predict(inputs)
    write_table(table, output)
    out.print(f"{len(table):,} rows in {output}")


def generate(
    model_uri: str,
    prompt: str,
    *,
    max_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    samples: int = 1,
    stop: str = "",
    truncate: Annotated[bool, Parameter(negative="")] = False,
):
    """Continue a text. In a terminal it appears as it is written.

    Example: gpt2 generate models:/gpt2-base@champion "This film" --max-tokens 60

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION, or a model's directory.
        prompt: the text to continue.
        max_tokens: at most this many new tokens.
        temperature: 0 takes the likeliest token; higher is more varied.
        top_k: sample from the k likeliest tokens; 0 from all.
        top_p: sample from the likeliest tokens that hold this share of probability.
        repetition_penalty: above 1, what the text has already becomes less likely.
        seed: the same seed gives the same text.
        samples: how many continuations.
        stop: end before this text.
        truncate: leave out the beginning of a prompt that is too long.
    """
    from flows.writing import show
    from gpt2 import load

    params = {
        "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
        "repetition_penalty": repetition_penalty, "samples": samples, "stop": stop, "truncate": truncate,
    }  # fmt: skip
    show(load(model_uri), prompt, params, out, err)


def automations(url: str):
    """Call a webhook when a model is promoted or refused, a training restarted or over budget, sentiment turns.

    Example: PREFECT_API_URL=http://127.0.0.1:4200/api gpt2 automations https://example.org/hook

    Args:
        url: where to post to.
    """
    from flows.automations import create

    for automation in create(url):
        out.print(automation.name, highlight=False)


def doctor():
    """Check this machine and name a remedy for what is wrong.

    Example: gpt2 doctor
    """
    from rich.table import Table

    from cluster.doctor import check

    table = Table()
    for column in ("", "check", "found", "remedy"):
        table.add_column(column)
    results = check()
    for r in results:
        mark = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}[r.state]
        table.add_row(mark, r.name, r.found, r.remedy)
    out.print(table)
    if any(r.state == "failed" for r in results):
        sys.exit(1)


def clean(*, yes: Annotated[bool, Parameter(negative="")] = False):
    """Remove the local state: artifacts, runs, registered models, samples, all in GPT2_HOME. Nothing else.

    Example: gpt2 clean --yes

    Args:
        yes: do it without asking.
    """
    from cluster.home import clean as remove
    from cluster.home import home

    if not yes and input(f"Remove {home()} with all models and runs in it? [y/N] ").strip().lower() != "y":
        out.print("Nothing was removed.")
        return
    out.print(f"Removed {remove()}", highlight=False)


for command in (
    run,
    predict,
    generate,
    automations,
    doctor,
    clean,
    models.models,
    models.promote,
    models.rollback,
    models.card,
    models.verdict,
    models.reproduce,
    models.serve,
):
    app.command(command)
LEARNERS = (learning.train_classifier, learning.train_recommender)
for job in (jobs.monitor, jobs.recommend, *LEARNERS, search.search, benchmark.benchmark):
    app.command(job)
app.command(importing.import_weights, name="import")

SERVICES = {  # told here, so that help need not load them
    "up": "Start Prefect with its UI and a worker, MLflow and Ray, and keep them running.\n\n"
    "What PREFECT_API_URL, MLFLOW_TRACKING_URI or RAY_ADDRESS names is used, not started. Ctrl-C or `gpt2 down` stops "
    "everything that this started and nothing else.",
    "down": "Stop what up started: runs first, which save and can go on later, then the services.",
    "status": "Show the services of up: address, whether each answers, log.",
}
for name, told in SERVICES.items():
    app.command(f"flows.commands.services:{name}", name=name, help=told)

checkpoints = App(name="checkpoints", help="The checkpoints of trainings that have not ended.")
app.command(checkpoints)
checkpoints.default(list_checkpoints)
checkpoints.command(verify_checkpoints, name="verify")
checkpoints.command(export_checkpoint, name="export")


def main() -> None:
    """Entry point: configuration errors end with exit code 2 and no traceback."""
    configure()
    # An exit that cleans up: what runs meanwhile may want to save first (`cluster.stopping`).
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        app()
    except ValueError as error:
        err.print("[red]refused:[/]", end=" ")
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
