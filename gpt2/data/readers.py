"""Source files, and documents read from them as streams, each with its line and byte offset or its fault.

Sources are files, directories, globs and fsspec URLs; each file has an id that identifies its content. The readers of
`datasets` give up a whole chunk at a bad line and can't say where it was. So lines and CSV records are read here, exact
to the byte, and handed on as a `datasets.IterableDataset`; Parquet is read by `datasets`.

A document is quarantined, with the reason, for invalid UTF-8, a NUL byte, a lone surrogate, JSON that is no object with
a text under the key, a CSV record with an unclosed quote (one that goes on for more than `max_bytes` counts as such) or
another number of fields than the header, and for being empty, too short or too long. A file is refused
(`UnreadableFile`) when it is cut or damaged under its compression, is UTF-16, or lacks the column. Blank lines, a byte
order mark and CRLF are accepted silently; so is an empty file, which has no documents.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import fsspec
import pyarrow as pa

from gpt2.data import samples
from gpt2.store.artifact import digest, file_sha256

if TYPE_CHECKING:
    from datasets import IterableDataset

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}


def split_suffix(path: str) -> tuple[str, str | None]:
    """Return (format, compression) of a file name; `ValueError` lists the formats."""
    lower = path.lower()
    for suffix, compression in COMPRESSIONS.items():
        for format in FORMATS:
            if lower.endswith(format + suffix):
                return format, compression
    raise ValueError(f"{path} is not one of {', '.join(FORMATS)}, plain or with .gz or .zst; convert or rename it")


def readable(path: str) -> bool:
    """Return True if the file name has a suffix that we read."""
    try:
        split_suffix(path)
        return True
    except ValueError:
        return False


def expand(sources: list[str]) -> list[str]:
    """Return the files of all sources, sorted within each source.

    `ValueError` names a source that does not exist or has no known format.
    """
    files: list[str] = []
    for source in sources:
        fs, path = fsspec.core.url_to_fs(source)
        local = fs.protocol == "file" or "file" in fs.protocol
        if any(c in path for c in "*?["):
            names = sorted(fs.glob(path))
        elif fs.isdir(path):
            names = sorted(fs.find(path))
        elif fs.exists(path):
            split_suffix(path)
            names = [path]
        else:
            raise ValueError(f"{source} does not exist; give a file, a directory, a glob or an fsspec URL")
        names = [name for name in names if readable(name)]
        if not names:
            raise ValueError(f"{source} holds no file of {', '.join(FORMATS)} (plain, .gz or .zst); give another")
        files += [name if local else fs.unstrip_protocol(name) for name in names]
    return files


def source_id(source: str) -> str:
    """Return the identity of a source's content: sha256 of local files, the store's own key of remote ones."""
    if source.startswith(samples.PREFIX):
        return samples.identity(source.removeprefix(samples.PREFIX))
    fs, path = fsspec.core.url_to_fs(source)
    if "file" not in fs.protocol:
        if not fs.exists(path):
            raise ValueError(f"{source} does not exist; check the address and the credentials")
        return digest([source, str(fs.ukey(path))])
    local = Path(path)
    if local.is_dir():
        files = sorted(p for p in local.rglob("*") if p.is_file())
        return digest([[p.relative_to(local).as_posix(), file_sha256(p)] for p in files])
    try:
        return file_sha256(local)
    except OSError as error:
        raise ValueError(f"{source} can't be read ({error.strerror}); check the path") from None


BLOCK = 256  # documents in a block
EXCERPT = 80


class UnreadableFile(ValueError):
    """A file that can't be used at all."""


class Document(NamedTuple):
    """A document, or an excerpt of a bad one with the reason."""

    text: str
    """The text; an excerpt if `reason` is set."""
    line: int
    """Line of the decompressed file, or row of a Parquet file, from 1."""
    byte_offset: int | None
    """Offset in the decompressed file; None for Parquet."""
    reason: str | None
    """The fault; None for a good document."""


def stream(path: str, text_field: str, max_bytes: int) -> IterableDataset:
    """Return a file's documents as an `IterableDataset` of blocks: columns `text`, `line`, `byte_offset`, `reason`.

    A line or record longer than `max_bytes` is never held in memory whole.
    """
    import datasets

    arguments = {"path": path, "text_field": text_field, "max_bytes": max_bytes}
    return datasets.IterableDataset.from_generator(blocks, gen_kwargs=arguments)


def blocks(path: str, text_field: str, max_bytes: int) -> Iterator[dict[str, list]]:
    """Yield blocks of documents as columns."""
    rows: list[Document] = []
    for document in documents(path, text_field, max_bytes):
        rows.append(document)
        if len(rows) == BLOCK:
            yield dict(zip(Document._fields, map(list, zip(*rows, strict=True)), strict=True))
            rows = []
    if rows:
        yield dict(zip(Document._fields, map(list, zip(*rows, strict=True)), strict=True))


def documents(path: str, text_field: str, max_bytes: int) -> Iterator[Document]:
    """Yield the documents of one file, in order; raise `UnreadableFile`."""
    format, compression = split_suffix(path)
    if format == ".parquet":
        yield from parquet_documents(path, text_field)
        return
    read = {".txt": text_documents, ".jsonl": json_documents, ".csv": csv_documents}[format]
    try:
        with fsspec.open(path, "rb") as raw:
            yield from read(path, Lines(path, decompressed(cast(BinaryIO, raw), compression), max_bytes), text_field)
    except (EOFError, zlib.error, OSError) as error:
        what = "is cut or damaged" if compression else "can't be read"
        raise UnreadableFile(f"{path} {what} ({error}); get the file again") from None


def decompressed(raw: BinaryIO, compression: str | None) -> BinaryIO:
    """Return the decompressed bytes of a file as a stream; reading a cut file raises an error."""
    if compression == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if compression == "zstd":
        # pyarrow's reader raises if the file is cut (`zstandard`'s takes a cut for the end) and bounds its memory.
        return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), 1 << 20))
    # fsspec's remote files can't read a line up to a given size.
    return raw if isinstance(raw, io.BufferedReader) else cast(BinaryIO, io.BufferedReader(cast(Any, raw), 1 << 20))


class Line(NamedTuple):
    """A line without its end."""

    data: bytes
    number: int
    offset: int
    too_long: bool
    odd_quotes: bool
    """True if the dropped end of a line that is too long has an odd number of double quotes."""


class Lines:
    """The lines of a byte stream, with line numbers and offsets. Only the beginning of a too long line is kept."""

    def __init__(self, path: str, raw: BinaryIO, max_bytes: int):
        self.path, self.raw, self.max_bytes = path, raw, max_bytes
        self.number, self.offset = 0, 0
        self.returned: deque[Line] = deque()

    def __iter__(self) -> Lines:
        return self

    def give_back(self, lines: list[Line]) -> None:
        """Put lines back, to be read before the rest."""
        self.returned.extendleft(reversed(lines))

    def __next__(self) -> Line:
        if self.returned:
            return self.returned.popleft()
        data = self.raw.readline(self.max_bytes + 2)
        if not data:
            raise StopIteration
        offset, size, too_long, quotes = self.offset, len(data), False, 0
        if not data.endswith(b"\n") and len(data) == self.max_bytes + 2:
            too_long, last = True, data
            while last and not last.endswith(b"\n"):
                last = self.raw.readline(1 << 20)
                size, quotes = size + len(last), quotes + last.count(b'"')
        self.number, self.offset = self.number + 1, offset + size
        if self.number == 1:
            if data.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UnreadableFile(f"{self.path} is UTF-16; convert it to UTF-8")
            data = data.removeprefix(b"\xef\xbb\xbf")
        data = data.removesuffix(b"\n").removesuffix(b"\r")
        return Line(data, self.number, offset, too_long, quotes % 2 == 1)


def good(text: str, line: Line) -> Document:
    return Document(text, line.number, line.offset, None)


def bad(line: Line, reason: str) -> Document:
    return Document(excerpt(line.data), line.number, line.offset, reason)


def excerpt(data: bytes) -> str:
    return data[: 4 * EXCERPT].decode("utf-8", "replace")[:EXCERPT]


def decode(data: bytes) -> tuple[str, str | None]:
    """Return (text, fault or None) of UTF-8 bytes."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return "", f"invalid UTF-8 at byte {error.start} of the document"
    return text, "NUL byte" if "\0" in text else None


def text_documents(path: str, lines: Lines, text_field: str) -> Iterator[Document]:
    """Yield a document per line."""
    for line in lines:
        if line.too_long:
            yield bad(line, "too long")
        elif line.data.strip():
            text, wrong = decode(line.data)
            yield bad(line, wrong) if wrong else good(text, line)


def json_documents(path: str, lines: Lines, text_field: str) -> Iterator[Document]:
    """Yield a document per line of JSON."""
    for line in lines:
        if line.too_long:
            yield bad(line, "too long")
        elif line.data.strip():
            text, wrong = json_text(line.data, text_field)
            yield bad(line, wrong) if wrong else good(text, line)


def json_text(data: bytes, text_field: str) -> tuple[str, str | None]:
    """Return (text under the key, fault or None)."""
    source, wrong = decode(data)
    if wrong:
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
    if "\0" in text:
        return "", "NUL byte"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "", "lone surrogate"
    return text, None


def csv_documents(path: str, lines: Lines, text_field: str) -> Iterator[Document]:
    """Yield a document per record (RFC 4180: quoted fields may hold line ends).

    Bytes are read as Latin-1, which loses nothing, and each field is decoded as UTF-8: bad bytes stay local. After a
    record that never closes its quote, reading resumes at the line after its first. The lines it had taken then become
    records of their own, so no line is read many times.
    """
    records = csv_records(lines)
    header: list[str] | None = None
    for first, fields, wrong in records:
        if header is None:
            if wrong or not fields:
                raise UnreadableFile(f"{path} has no readable header ({wrong or 'empty line'}); add one")
            header = [decode(f.encode("latin-1"))[0] for f in fields]
            if text_field not in header:
                raise UnreadableFile(
                    f"{path} has no column {text_field!r}; it has {', '.join(header)[:500]}: set corpus.text_field"
                )
            column = header.index(text_field)
        elif wrong or fields is None:
            yield bad(first, wrong or "no record")
        elif len(fields) != len(header):
            if fields:  # an empty line is no record
                yield bad(first, f"{len(fields)} fields, the header has {len(header)}")
        else:
            text, wrong = decode(fields[column].encode("latin-1"))
            yield bad(first, wrong) if wrong else good(text, first)


def csv_records(lines: Lines) -> Iterator[tuple[Line, list[str] | None, str | None]]:
    """Yield (first line, fields, fault or None) of each record."""
    used: list[Line] = []
    size, alone = 0, 0  # bytes of this record so far; number of coming lines that are records of their own

    def feed() -> Iterator[str]:
        nonlocal size
        while not (used and alone) and size <= lines.max_bytes and (line := next(lines, None)):
            used.append(line)
            size += len(line.data) + 1
            closing = '"' if line.odd_quotes else ""
            yield line.data.decode("latin-1") + closing + "\n"

    csv.field_size_limit(lines.max_bytes + 16)
    reader = csv.reader(feed(), strict=True)
    while True:
        used.clear()
        size = 0
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.give_back(used[1:])
            # the last line, where the fault showed, may begin a longer record; earlier lines can't
            alone = max(alone - 1, len(used) - 2, 0)
            yield used[0], None, f"CSV: {error}"
            reader = csv.reader(feed(), strict=True)
            continue
        alone = max(alone - 1, 0)
        yield used[0], fields, "too long" if any(line.too_long for line in used) else None


def parquet_documents(path: str, text_field: str) -> Iterator[Document]:
    """Yield a document per row, read by `datasets`."""
    import datasets

    try:
        rows = datasets.load_dataset("parquet", data_files=glob.escape(path), split="train", streaming=True)
        number = 0
        for batch in rows.with_format("arrow").iter(BLOCK):
            if text_field not in batch.column_names:
                raise UnreadableFile(
                    f"{path} has no column {text_field!r}; it has {', '.join(batch.column_names)}: "
                    f"set corpus.text_field"
                )
            column = batch.column(text_field)
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            textual = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            # read as bytes: one text that is not UTF-8 would fail the whole block
            for value in (column.cast(pa.large_binary()) if textual else column).to_pylist():
                number += 1
                if not textual or value is None:
                    yield Document("", number, None, f"{text_field!r} is {type(value).__name__}, not text")
                    continue
                text, wrong = decode(value)
                yield Document(excerpt(value) if wrong else text, number, None, wrong)
    except UnreadableFile:
        raise
    except Exception as error:  # pyarrow and datasets raise many kinds for a damaged file
        raise UnreadableFile(
            f"{path} can't be read as Parquet ({str(error).splitlines()[0][:200]}); get it again"
        ) from None
