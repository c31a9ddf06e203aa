"""`gpt2 predict`, `generate` and `label`, with their files of inputs and predictions."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from flows.commands.console import err
from flows.commands.console import tables as out
from gpt2.loading import LoadedModel

if TYPE_CHECKING:
    import pandas as pd


def predict(model_uri: str, *, input: Path, output: Path):
    """Apply a registered model to a file of inputs.

    Example: gpt2 predict models:/gpt2-sentiment@champion --input posts.txt --output scored.jsonl

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION, or a model's directory.
        input: .txt, a text per line; .jsonl, a string or an object per line; .csv or .parquet with a column `text`.
        output: .jsonl, .csv or .parquet, a row per input.
    """

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
    """Continue a text. A terminal shows it as it is written.

    Example: gpt2 generate models:/gpt2-base@champion "This film" --max-tokens 60

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION, or a model's directory.
        prompt: the text to continue.
        max_tokens: at most this many new tokens.
        temperature: 0 takes the likeliest token; higher is more varied.
        top_k: sample from the k likeliest tokens; 0 from all.
        top_p: sample from the likeliest tokens that hold this share of probability.
        repetition_penalty: above 1, tokens that the text already has become less likely.
        seed: the same seed gives the same text.
        samples: number of continuations.
        stop: end before this text.
        truncate: leave out the beginning of a prompt that is too long.
    """

    from gpt2 import load

    params = {
        "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
        "repetition_penalty": repetition_penalty, "samples": samples, "stop": stop, "truncate": truncate,
    }  # fmt: skip
    show(load(model_uri), prompt, params, out, err)


def label(
    model_uri: str,
    *,
    input: Path | None = None,
    output: Path | None = None,
    count: int = 100,
    add: Path | None = None,
):
    """Choose the texts to label next: those that would teach a classifier most, unlike each other, by topic.

    Fill in the column `label` of the file, in any program, and give it back with --add: its rows are added to the file
    that the model learned from, and the deployment `retrain`, or gpt2 train-classifier, learns them.

    Example: gpt2 label models:/gpt2-sentiment@champion --input posts.csv --output to_label.csv

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION of a classifier.
        input: .txt, .jsonl, .csv or .parquet, with a column `text`, and perhaps `topic` and `label`.
        output: the .csv to label.
        count: number of texts.
        add: a file that was written by --output, with labels.
    """
    if add is not None:
        added, source = add_labels(model_uri, add)
        out.print(f"{added:,} labelled texts were added to {source}; `retrain` learns them", markup=False)
        return
    if input is None or output is None or output.suffix != ".csv":
        raise ValueError("gpt2 label needs --input FILE and --output FILE.csv, or --add FILE.csv with labels")
    chosen = to_label(model_uri, input, count)
    write_table(chosen, output)
    reasons = ", ".join(f"{n:,} {why}" for why, n in chosen["why"].str.partition(":")[0].value_counts().items())
    out.print(f"{len(chosen):,} texts to label are in {output}: {reasons}", markup=False)


def to_label(model_uri: str, path: Path, count: int) -> pd.DataFrame:
    """Return the texts of a file to label next; those that the model was trained on are known if they are here."""
    import pandas as pd

    from cluster.home import store
    from cluster.registry.resolve import load, resolve_model
    from gpt2.data.tables import cell, read_table
    from gpt2.tasks.sentiment import labelling

    model = resolve_model(model_uri)
    predictor: Any = load(model.address, "sentiment").predictor
    if path.suffix == ".txt":
        table = pd.DataFrame({"text": read_inputs(path)})
    else:
        table = read_table(path)
        if "text" not in table:
            raise ValueError(f"--input {path} has no column `text`")
        table = table.assign(text=table["text"].map(cell))
    table = table[table["text"].notna()].reset_index(drop=True)
    examples = store().get("sentiment-examples", model.examples) if model.examples else None
    known = read_table(examples.file("train.parquet"))["text"].tolist() if examples else []
    return labelling.choose(labelling.judged(table, predictor), known, count)


def add_labels(model_uri: str, path: Path) -> tuple[int, Path]:
    """Add labelled texts to the source of a classifier; return (their number, the source)."""
    import datetime

    from flows.jobs.retrain import RetrainPlan
    from gpt2.data.samples import PREFIX
    from gpt2.tasks.sentiment import labelling
    from gpt2.tasks.sentiment.config import LabelledFile

    plan = RetrainPlan.of(model_uri)
    settings = plan.settings if plan.flow == "train-classifier" else plan.settings.get("tasks", {}).get("sentiment", {})
    source = settings.get("source", "")
    if not Path(source).is_file():
        what = "is a sample, which stays as it is" if source.startswith(PREFIX) else "is not a file of this machine"
        raise ValueError(f"{plan.version}: {source!r}, from which it learned, {what}; gpt2 train-classifier FILE")
    known = {name: value for name, value in settings.items() if name in LabelledFile.model_fields}
    columns = LabelledFile.model_validate(known)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return labelling.add(path, Path(source), columns, now), Path(source)


def show(model: LoadedModel, prompt: str, params: dict[str, Any], out: Console, err: Console) -> None:
    """Print the prompt and its continuation, piece by piece where `out` is a terminal; notes go to `err`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        stream = getattr(model.predictor, "stream", None)
        if stream and out.is_terminal and params["samples"] == 1:
            out.file.write(prompt)
            for piece in stream(prompt, params):
                out.file.write(piece)
                out.file.flush()
            out.file.write("\n")
        else:
            for text in model.predict([prompt], **params)["text"]:
                out.print(prompt + text, highlight=False, markup=False, soft_wrap=True)
    for note in caught:
        if note.category is UserWarning and "tokens are read" in str(note.message):
            err.print(f"note: {note.message}", highlight=False, markup=False, soft_wrap=True)


def read_inputs(path: Path) -> list[Any]:
    """Return the inputs of `predict`: .txt a text per line; .jsonl a string or object per line; .csv, .parquet column
    `text`."""
    if path.suffix not in (".txt", ".jsonl", ".csv", ".parquet"):
        raise ValueError(f"--input {path}: {path.suffix!r} is not .txt, .jsonl, .csv or .parquet")
    if not path.exists():
        raise ValueError(f"--input {path}: there is no such file")
    inputs = column(path) if path.suffix in (".csv", ".parquet") else lines(path)
    if not inputs:
        raise ValueError(f"--input {path}: is empty; give a file with inputs")
    return inputs


def lines(path: Path) -> list[Any]:
    """Return an input for each line that is not empty: its text, or the value of a line of JSON.

    Only `\\n` and `\\r\\n` end a line of text.
    """
    from gpt2.data.readers import UnreadableFile
    from gpt2.data.tables import DAMAGED, decoded, json_values

    try:
        if path.suffix == ".jsonl":
            values = json_values(path.read_bytes(), whole=True)
            return [value_of(f"--input {path} row {number}", *parsed) for number, *parsed in values]
        rows = [line.removesuffix("\r") for line in decoded(path.read_bytes()).split("\n")]
    except UnreadableFile as error:
        raise ValueError(f"--input {path} can't be read: {error}") from None
    if damaged := next((number for number, row in enumerate(rows, 1) if DAMAGED.search(row)), None):
        raise ValueError(f"--input {path} line {damaged} is not UTF-8, as the others are; mend it")
    return [row for row in rows if row.strip()]


def value_of(place: str, value: Any, wrong: str | None) -> Any:
    """Return the input that a line of JSON stands for; `ValueError` where it is none."""
    if wrong:
        raise ValueError(f"{place} is {wrong}")
    if isinstance(value, dict) and "text" in value:
        return text_of(place, value["text"])
    if not isinstance(value, (str, dict)):
        raise ValueError(f"{place} is {value!r:.60}, neither a string nor an object; put quotes around a text")
    return value


def text_of(place: str, value: Any) -> str:
    """Return a cell of the column `text`, a number as its digits; `ValueError` if it has no text."""
    from gpt2.data.tables import cell

    if cell(value) is None:
        raise ValueError(f"{place} has no text in `text`; give it one, or leave the row out")
    return value if isinstance(value, str) else str(cell(value))


def column(path: Path) -> list[Any]:
    """Return the column `text` of a table."""
    from gpt2.data.tables import listed, read_table

    try:
        table = read_table(path)
    except ValueError as error:
        raise ValueError(f"--input {error}") from None
    if "text" not in table:
        raise ValueError(f"--input {path} has no column `text`; it has {listed(table)}")
    return [text_of(f"--input {path} row {number}", value) for number, value in enumerate(table["text"], 1)]


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write predictions atomically; raises `ValueError` for an unknown format."""
    aside = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".jsonl":
        table.to_json(aside, orient="records", lines=True, force_ascii=False)
    elif path.suffix == ".csv":
        table.to_csv(aside, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(aside, index=False)
    else:
        raise ValueError(f"--output {path}: {path.suffix!r} is not .jsonl, .csv or .parquet")
    os.replace(aside, path)
