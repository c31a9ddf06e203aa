"""Documents of source files as streams, each with its line and byte offset or its fault.

The readers of `datasets` give up a whole chunk at a bad line and can't say where it was. So lines and CSV records are
read here, exact to the byte, and handed on as a `datasets.IterableDataset`. Of Parquet, only the column of texts is
read.

A document is quarantined, with the reason, for invalid bytes, a NUL byte, a lone surrogate, JSON that is no object with
a text under the key, a CSV record with an unclosed quote (one that goes on for more than `max_bytes` counts as such) or
more fields than the header, and for being empty, too short or too long. A file is refused
(`UnreadableFile`) when it is cut or damaged under its compression, is one JSON text over several lines, or lacks the
column. Blank lines, a byte order mark and CRLF are accepted silently; so is an empty file, which has no documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from gpt2.data.config import PLAIN, CorpusConfig, FileForm
from gpt2.data.forms import Line, Lines, csv_file, json_lines, lines_of, parquet_file, textual
from gpt2.data.sources import UnreadableFile, split_suffix

if TYPE_CHECKING:
    from datasets import IterableDataset

BLOCK = 256  # documents in a block
EXCERPT = 80


class Document(NamedTuple):
    """A document, or an excerpt of a bad one with the reason."""

    text: str
    """The text; an excerpt if `reason` is set."""
    line: int
    """Line of the decompressed file, or row of a Parquet file, from 1."""
    byte_offset: int | None
    """Offset in the decompressed file; None for Parquet, and for encodings other than UTF-8 and Windows-1252."""
    reason: str | None
    """The fault; None for a good document."""


def stream(path: str, config: CorpusConfig, max_bytes: int) -> IterableDataset:
    """Return a file's documents as an `IterableDataset` of blocks: columns `text`, `line`, `byte_offset`, `reason`.

    A line or record longer than `max_bytes` is never held in memory whole.
    """
    import datasets

    arguments = {
        "path": path, "text_field": config.text_field, "max_bytes": max_bytes, "form": config.form,
        "marks": tuple(config.split_at),
    }  # fmt: skip
    return datasets.IterableDataset.from_generator(blocks, gen_kwargs=arguments)


def blocks(
    path: str, text_field: str, max_bytes: int, form: FileForm, marks: Sequence[str]
) -> Iterator[dict[str, list]]:
    """Yield blocks of documents as columns."""
    rows = documents(path, text_field, max_bytes, form, marks)
    while block := list(islice(rows, BLOCK)):
        yield dict(zip(Document._fields, map(list, zip(*block, strict=True)), strict=True))


def documents(
    path: str, text_field: str, max_bytes: int, form: FileForm = PLAIN, marks: Sequence[str] = ()
) -> Iterator[Document]:
    """Yield the documents of one file, in order, split at the marks; raise `UnreadableFile`."""
    format, _ = split_suffix(path)
    if format == ".parquet":
        found = parquet_documents(path, text_field)
    else:
        found = line_documents(path, format, text_field, max_bytes, form, marks)
    if not marks:
        yield from found
        return
    at = re.compile("|".join(map(re.escape, marks)))
    for document in found:
        if document.reason is not None:
            yield document
        else:  # between two marks there may be nothing
            yield from (document._replace(text=part) for part in at.split(document.text) if part.strip())


def line_documents(
    path: str, format: str, text_field: str, max_bytes: int, form: FileForm, marks: Sequence[str]
) -> Iterator[Document]:
    with lines_of(path, form, max_bytes) as lines:
        if format == ".txt":
            yield from marked_documents(lines, marks) if marks else text_documents(lines)
        elif format == ".jsonl":
            yield from json_documents(lines, text_field)
        else:
            yield from csv_documents(lines, form, text_field)


def good(text: str, line: Line) -> Document:
    return Document(text, line.number, line.offset, None)


def bad(line: Line, reason: str) -> Document:
    return Document(excerpt(line.data), line.number, line.offset, reason)


def excerpt(data: bytes) -> str:
    return data[: 4 * EXCERPT].decode("utf-8", "replace")[:EXCERPT]


def fault_of(text: str) -> str | None:
    return "NUL byte" if "\0" in text else None


def decode(data: bytes) -> tuple[str, str | None]:
    """Return (text, fault or None) of UTF-8 bytes."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return "", f"invalid UTF-8 at byte {error.start} of the document"
    return text, fault_of(text)


def text_documents(lines: Lines) -> Iterator[Document]:
    """Yield a document per line."""
    for line in lines:
        if line.too_long:
            yield bad(line, "too long")
        elif line.data.strip():
            text, wrong = lines.decoded(line.data)
            wrong = wrong or fault_of(text)
            yield bad(line, wrong) if wrong else good(text, line)


def marked_documents(lines: Lines, marks: Sequence[str]) -> Iterator[Document]:
    """Yield the lines of each document up to a line with a mark, together."""
    first: Line | None = None
    texts: list[str] = []
    at = re.compile(f".*(?:{'|'.join(map(re.escape, marks))})", re.DOTALL)
    for line in lines:
        text, wrong = lines.decoded(line.data)
        wrong = "too long" if line.too_long else wrong or fault_of(text)
        if wrong:
            yield bad(line, wrong)
            continue
        first = first or line
        whole = at.match(text)
        texts.append(text[: whole.end()] if whole else text)
        if sum(map(len, texts)) > lines.max_bytes:
            yield bad(first, "too long")
        elif whole:
            yield good("\n".join(texts), first)
        else:
            continue
        rest = text[whole.end() :] if whole else ""
        first, texts = (line, [rest]) if rest.strip() else (None, [])
    if first:
        yield good("\n".join(texts), first)


def json_documents(lines: Lines, text_field: str) -> Iterator[Document]:
    """Yield a document per line of JSON."""
    for line in json_lines(lines):
        if line.too_long:
            yield bad(line, "too long")
        else:
            source, wrong = lines.decoded(line.data)
            text, wrong = ("", wrong) if wrong else json_text(source, text_field)
            yield bad(line, wrong) if wrong else good(text, line)


def json_text(source: str, text_field: str) -> tuple[str, str | None]:
    """Return (text under the key, fault or None)."""
    if wrong := fault_of(source):
        return "", wrong
    try:
        value = json.loads(source)
    except ValueError as error:
        return "", f"not JSON: {error.args[0].splitlines()[0] if error.args else error}"
    except RecursionError:
        return "", "JSON nested too deep"
    if not isinstance(value, dict):
        return "", f"JSON {type(value).__name__}, not an object"
    if text_field not in value:
        return "", f"no key {text_field!r}"
    text = value[text_field]
    if not isinstance(text, str):
        return "", f"{text_field!r} is {type(text).__name__}, not text"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "", "lone surrogate"
    return text, fault_of(text)


def no_column(path: str, text_field: str, names: Sequence[str]) -> UnreadableFile:
    have = ", ".join(" ".join(name.split()) for name in names)[:500]
    return UnreadableFile(f"{path} has no column {text_field!r}; it has {have}: set corpus.text_field")


def csv_documents(lines: Lines, form: FileForm, text_field: str) -> Iterator[Document]:
    """Yield a document per record."""
    header, records = csv_file(lines, form)
    if not header:
        return
    if text_field not in header:
        raise no_column(lines.path, text_field, header)
    column = header.index(text_field)
    for record in records:
        wrong = record.wrong or record.bad.get(column) or fault_of(record.fields[column])
        yield bad(record.first, wrong) if wrong else good(record.fields[column], record.first)


def parquet_documents(path: str, text_field: str) -> Iterator[Document]:
    """Yield a document per row. Only the column of texts is read, as bytes: one bad text fails no other."""
    with parquet_file(path) as file:
        names = file.schema_arrow.names
        if text_field not in names:
            raise no_column(path, text_field, names)
        number = 0
        for batch in file.iter_batches(BLOCK, columns=[text_field], use_threads=False):
            column = batch.column(text_field)
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            is_text = textual(column.type)
            for value in (column.cast(pa.large_binary()) if is_text else column).to_pylist():
                number += 1
                if not is_text or value is None:
                    yield Document("", number, None, f"{text_field!r} is {type(value).__name__}, not text")
                    continue
                text, wrong = decode(value)
                yield Document(excerpt(value) if wrong else text, number, None, wrong)
