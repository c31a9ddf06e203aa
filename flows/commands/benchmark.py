"""`gpt2 benchmark`: a language model on public benchmarks, from files on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.commands.console import tables as out

if TYPE_CHECKING:
    from rich.table import Table


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
        out.print(table(results))
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


def table(results: list[dict[str, Any]]) -> Table:
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
