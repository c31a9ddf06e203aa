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

    from gpt2.data.config import FileForm


def predict(
    model_uri: str,
    *,
    input: str,
    output: Path,
    text_field: str = "text",
    separator: str | None = None,
    encoding: str | None = None,
):
    """Apply a registered model to a file of inputs.

    Example: gpt2 predict models:/gpt2-sentiment@champion --input posts.txt --output scored.jsonl

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION, or a model's directory.
        input: .txt, a text per line; .jsonl, a string or an object per line; .csv, .tsv or .parquet with a column
            `text`; or a folder, a glob or an fsspec URL of such files.
        output: .jsonl, .csv or .parquet, a row per input.
        text_field: the column, or the key, of the texts.
        separator: the character between the fields of a .csv, if it is not to be found out.
        encoding: the encoding of a text file, as in cp1251, if it is not to be found out.
    """

    from gpt2 import load
    from gpt2.data.config import FileForm
    from gpt2.data.sources import left_out

    if others := left_out([input]):
        err.print(f"note: {others}", highlight=False, markup=False, soft_wrap=True)
    inputs = read_inputs(input, FileForm(separator=separator, encoding=encoding), text_field)
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


def read_inputs(source: str | Path, form: FileForm | None = None, text_field: str = "text") -> list[Any]:
    """Return the inputs of `predict` in the order of files and rows; `ValueError` names a row without one.

    Of .txt a text per line that is not blank, of .jsonl a string or an object per line, else the column of texts.
    """
    from gpt2.data.config import FileForm
    from gpt2.data.sources import expand, split_suffix
    from gpt2.data.tables import json_values, missing, place, read_table, texts

    form, inputs = form or FileForm(), []
    try:
        for path in expand([str(source)]):
            match split_suffix(path)[0]:
                case ".txt":
                    inputs += [text for _, text in texts(path, form)]
                case ".jsonl":
                    values = json_values(path, form, whole=True)
                    inputs += [value_of(f"{path} row {number}", text_field, *parsed) for number, *parsed in values]
                case _:
                    table = read_table(path, form, {text_field})
                    if fault := missing(table, {"--text-field": text_field}):
                        raise ValueError(f"{path} has {fault}")
                    rows = enumerate(table[text_field], 1)
                    inputs += [text_of(place(path, table, number), text_field, value) for number, value in rows]
    except ValueError as error:
        raise ValueError(f"--input {error}") from None
    if not inputs:
        raise ValueError(f"--input {source}: is empty; give a file with inputs")
    return inputs


def value_of(where: str, text_field: str, value: Any, wrong: str | None) -> Any:
    """Return the input that a line of JSON stands for; `ValueError` where it is none."""
    if wrong:
        raise ValueError(f"{where} is {wrong}")
    if isinstance(value, dict) and text_field in value:
        return text_of(where, text_field, value[text_field])
    if not isinstance(value, (str, dict)):
        raise ValueError(f"{where} is {value!r:.60}, neither a string nor an object; put quotes around a text")
    return value


def text_of(where: str, text_field: str, value: Any) -> str:
    """Return a cell of the column of texts, a number as its digits; `ValueError` if it has no text."""
    from gpt2.data.tables import cell

    if cell(value) is None:
        raise ValueError(f"{where} has no text in `{text_field}`; give it one, or leave the row out")
    return value if isinstance(value, str) else str(cell(value))


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
