"""Commands on registered models: list, promote, roll back, describe, push, copy, reproduce, serve, benchmark."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from flows.commands.console import tables as out

if TYPE_CHECKING:
    from rich.table import Table


def models():
    """List the registered models: versions, aliases, verdicts, the metric that the gate compares, lineage, age.

    Example: gpt2 models
    """
    from rich.box import SIMPLE
    from rich.table import Table

    from cluster.registry.resolve import listed, unusable_champions

    rows = listed()
    if not rows:
        out.print("No models are registered yet; `gpt2 run` makes some.")
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        metric = next((row["tags"]["gpt2.metric"] for row in mine if "gpt2.metric" in row["tags"]), "metric")
        table = Table(title=name, title_justify="left", title_style="bold", box=SIMPLE)
        for column in ("v", "alias", "verdict", metric, "simple", "made from", "age"):
            table.add_column(column, justify="right" if column in ("v", metric, "simple", "age") else "left")
        for row in mine:
            tags = row["tags"]
            numbers = [f"{float(tags[key]):.4f}" if key in tags else "" for key in ("gpt2.value", "gpt2.floor")]
            aliases = "\n".join(f"@{alias}" for alias in row["aliases"])
            sources = "\n".join(f"{what} {tags.get(f'gpt2.{what}', '?')[:8]}" for what in ("data", "base"))
            stands = (
                "rolled back" if "gpt2.rolled_back" in tags else "forced" if "gpt2.forced" in tags else row["verdict"]
            )
            table.add_row(str(row["version"]), aliases, stands, *numbers, sources, age(row["created"]))
        out.print(table)
        for row in mine:
            remark = row["tags"].get("gpt2.rolled_back") or row["reasons"]
            if remark and (row["aliases"] or "gpt2.rolled_back" in row["tags"]):
                kind = "rolled back " if "gpt2.rolled_back" in row["tags"] else ""
                out.print(f"  v{row['version']} {kind}{remark}", highlight=False, markup=False)
    for sentence in unusable_champions():
        out.print(f"[red]A champion can't be loaded:[/] {escape(sentence)}", highlight=False, soft_wrap=True)
    if rows:
        out.print("\n`gpt2 card models:/NAME/VERSION` shows the card of one.", highlight=False)


def age(created: float) -> str:
    """Return the age (`created`: s since 1970) in minutes, hours or days."""
    hours = (time.time() - created) / 3600
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours / 24:.0f} d" if hours > 48 else f"{hours:.0f} h"


def promote(model: str, version: str, *, reason: str = "", force: Annotated[bool, Parameter(negative="")] = False):
    """Make a version the champion. A version that the gate refused or has not judged needs --force and --reason.

    Example: gpt2 promote gpt2-sentiment 3 --reason "the analysts prefer it"

    Args:
        model: the registered model, such as gpt2-sentiment.
        version: its number.
        reason: why; kept with the version.
        force: promote it even if the gate did not.
    """
    from cluster.registry import promotion

    before = promotion.promote(model, version, reason, force)
    if str(before.version) == version:
        out.print(f"{model} version {version} is the champion.", highlight=False)
        return
    out.print(f"{model}: version {version} is the champion now; it was version {before.version}.", highlight=False)


def rollback(model: str, *, reason: str = ""):
    """Go back to the champion before the current one. Readers get one or the other, never a mixture.

    Example: gpt2 rollback gpt2-sentiment --reason "strange answers since noon"

    Args:
        model: the registered model, such as gpt2-sentiment.
        reason: why; kept with the version that is rolled back.
    """
    from cluster.registry import promotion

    left, back = promotion.rollback(model, reason)
    out.print(f"{model}: version {back.version} is the champion again, instead of {left.version}.", highlight=False)


def card(model_uri: str, *, output: Path | None = None):
    """Show the card of a registered model: use, data, results beside baselines, limits, lineage, and how to load it.

    Example: gpt2 card models:/gpt2-sentiment@champion --output card.md

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION.
        output: a file for the Markdown; without it, the card is printed.
    """
    from cluster.registry import download
    from gpt2.evaluation.model_card import NAME

    version = download.find(model_uri)
    text = f"{download.read_text(version, NAME)}\n{status(version)}"
    if output is None:
        print(text)
        return
    output.write_text(text, "utf-8")
    out.print(f"The card of {download.exact(version)} is in {output}", highlight=False)


def verdict(model_uri: str, *, output: Path | None = None):
    """Show the gate's verdict on a version with its figures, computed again from the predictions kept with it.

    Example: gpt2 verdict models:/gpt2-sentiment@champion --output verdict.html

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION.
        output: a file for the page: the verdict, and the report with the champion beside the model.
    """
    from flows.stages.gate import recompute_verdict

    result = recompute_verdict(model_uri, output)
    beside = f", beside version {result['champion']}" if result["champion"] else ""
    stands = "promoted" if result["promote"] else "not promoted"
    out.print(f"{result['model']} version {result['version']}{beside}: {stands}", highlight=False)
    enough = any(c["alternative"] and c["passed"] for c in result["criteria"])
    for criterion in result["criteria"]:
        mark = "[green]✓[/]" if criterion["passed"] else "–" if criterion["alternative"] and enough else "[red]✗[/]"
        out.print(f"{mark} [bold]{criterion['name']}[/]", highlight=False)
        out.print(f"  {criterion['text']}", highlight=False, markup=False)
    if output is not None:
        out.print(f"The page is in {output}", highlight=False)


def status(version) -> str:
    """Return the decisions on a version as a section of its card."""
    from cluster.registry.local import verdict_of

    lines = [f"* {version.name} version {version.version}, {verdict_of(version)}"]
    lines += [f"* alias `@{alias}`" for alias in version.aliases]
    for what in ("promoted", "refused", "forced", "rolled_back"):
        if f"gpt2.{what}" in version.tags:
            lines.append(f"* {what.replace('_', ' ')}: {version.tags[f'gpt2.{what}']}")
    if replaced := version.tags.get("gpt2.replaced"):
        lines.append(f"* replaced version {replaced.split(',')[0]}")
    return "## Status\n\n" + "\n".join(lines) + "\n"


def push(model_uri: str, repository: str, *, private: Annotated[bool, Parameter(negative="")] = False):
    """Publish a registered base model on the Hugging Face hub, with its card, in the form that `transformers` reads.

    Weights, tokenizer, config.json and the card are sent in one commit, and nothing else that lies with the version.

    Example: gpt2 push models:/gpt2-base@champion acme/my-gpt2 --private

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION of a base model.
        repository: OWNER/NAME on the hub; it is made if it is not there.
        private: make a new repository visible to its owner only.
    """
    from cluster.registry import download
    from gpt2.evaluation.model_card import NAME
    from gpt2.store.model_files import BASE_NAME, read_task
    from gpt2.weights import huggingface

    version = download.find(model_uri)
    folder = download.pull_version(version)
    task = read_task(folder)["task"]
    if task != BASE_NAME:
        raise ValueError(f"{model_uri}: is a model for {task}, which `transformers` can't read; give one of gpt2-base")
    card = folder / NAME
    source = version.tags.get("gpt2.imported_from", "").partition("@")[0]
    about = {"base_model": source} if huggingface.ID.fullmatch(source) else {}
    text = card.read_text("utf-8") if card.exists() else f"# {version.name} {version.version}\n"
    url = huggingface.upload(folder, repository, text, private, **about)
    out.print(f"{download.exact(version)} is at {url}", highlight=False)


def copy(model_uri: str, *, to: str):
    """Copy a registered model to another registry, with its verdict, card, lineage and evidence.

    What arrives is read back and verified before the version is made. Then the alias of the address moves there. Files
    that are there already make no second version.

    Example: gpt2 copy models:/gpt2-sentiment@champion --to https://mlflow.example.org

    Args:
        model_uri: models:/NAME@ALIAS, or models:/NAME/VERSION, which moves no alias.
        to: an MLflow server, sqlite:///FILE, or the folder of another home (GPT2_HOME).
    """
    from cluster.registry import download, promotion

    version, new = promotion.copy(model_uri, to)
    aliases = "".join(f", @{alias}" for alias in sorted(version.aliases))
    done = "is" if new else "was there already, as"
    out.print(f"{model_uri} {done} {download.exact(version)} of {promotion.public(to)}{aliases}", soft_wrap=True)


def reproduce(model_uri: str, *, folder: Path | None = None):
    """Make a registered model again, from the recorded data, settings, code and seeds, and compare it bit by bit.

    Works in a fresh home with its own store; registers nothing. Exits with 1 if bits differ, and with 2 if the data is
    missing or the code has changed.

    Example: gpt2 reproduce models:/gpt2-sentiment@champion

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION.
        folder: the fresh home, a new or empty folder, which is kept; without it, a temporary one is used and removed.
    """
    from flows.jobs.reproduce import reproduce as make_again

    if not make_again(model_uri, folder, lambda text: out.print(text, highlight=False, markup=False, soft_wrap=True)):
        sys.exit(1)


def serve(
    model_uri: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    poll: float = 10.0,
    max_inputs: int = 256,
    max_bytes: int = 1 << 20,
    log: Path | None = None,
):
    """Serve a registered model over HTTP; a new champion takes over without a dropped request.

    GET /health, /metrics, /docs; POST /predict with {"inputs": [...], "params": {...}} answers {"model", "version",
    "predictions"}. A language model also has POST /v1/completions, as OpenAI's API has it.

    Example: gpt2 serve models:/gpt2-sentiment@champion --port 8000

    Args:
        model_uri: models:/NAME@ALIAS, which is followed when the alias moves, or models:/NAME/VERSION.
        host: the address to listen at; beyond loopback, GPT2_SERVE_TOKEN must be set, and requests must send it.
        port: the port to listen at; 0 takes a free one.
        poll: seconds between two checks of the alias.
        max_inputs: inputs in one request; more are refused.
        max_bytes: size of a request's body in bytes; more is refused.
        log: a folder for the texts and their answers, which gpt2 monitor reads as posts.
    """
    from cluster.serving import serve as run

    run(model_uri, host, port, poll, max_inputs, max_bytes, log)


def benchmark(
    model_uri: str,
    *,
    data: Path,
    task: Annotated[list[str] | None, Parameter(negative="")] = None,
    limit: int | None = None,
    batch_size: int = 16,
    output: Path | None = None,
):
    """Measure a language model on LAMBADA, HellaSwag, or any lm-eval task, from local files; absent ones are skipped.

    Example: gpt2 benchmark models:/gpt2-base@champion --data benchmarks/ --output benchmarks.json

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION, or a model's directory, of a language model.
        data: the folder with lambada*.jsonl, hellaswag*.jsonl (as published), or NAME.yaml of an lm-eval task.
        task: lambada, hellaswag (default: both), or an lm-eval task; may be given several times.
        limit: at most this many documents of each.
        batch_size: number of texts in a batch.
        output: a JSON file for the figures.
    """
    from gpt2 import load
    from gpt2.tasks.base.kind import GeneratorPredictor

    if not data.is_dir():
        raise ValueError(f"--data {data}: is not a folder; give the one with the benchmarks' files")
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"--batch-size {batch_size}, --limit {limit}: too small; give 1 or more")
    loaded = load(model_uri)
    if not isinstance(loaded.predictor, GeneratorPredictor):
        raise ValueError(f"{model_uri}: is a model for {loaded.task}; give a language model such as gpt2-base")
    results: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for name in task or ["lambada", "hellaswag"]:
        figures = measured(name, loaded, data, limit, batch_size)
        if isinstance(figures, str):
            skipped[name] = figures
            out.print(f"{name}: skipped, {figures}", highlight=False, markup=False, soft_wrap=True)
        else:
            results.append(figures)
    if results:
        out.print(figures_table(results))
    if output is not None:
        text = json.dumps({"model": loaded.address, "results": results, "skipped": skipped}, indent=1)
        output.write_text(text + "\n", "utf-8")
        out.print(f"The figures are in {output}", highlight=False)


def measured(name: str, loaded: Any, data: Path, limit: int | None, batch_size: int) -> dict[str, Any] | str:
    """Return the figures of a task, or the reason why there are none."""
    from gpt2.tasks.base import benchmarks

    if name not in benchmarks.BENCHMARKS:
        return benchmarks.measure_by_harness(name, loaded.directory, data, limit, batch_size)
    predictor = loaded.predictor
    return benchmarks.measure(name, predictor.model, predictor.tokenizer, data, limit, batch_size)


def figures_table(results: list[dict[str, Any]]) -> Table:
    """Return a table with a row per metric."""
    from rich.table import Table

    shown = Table()
    for column in ("task", "documents", "metric", "value", "95 % interval"):
        shown.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for result in results:
        for metric, value in result["metrics"].items():
            interval = result["intervals"].get(metric)
            bounds = "" if interval is None else f"{interval[0]:,.4f} to {interval[1]:,.4f}"
            shown.add_row(result["task"], f"{result['documents']:,}", metric, f"{value:,.4f}", bounds)
    return shown
