"""Source files, and documents read from them as streams, each with its line and byte offset or its fault.

Sources are files, directories, globs and fsspec URLs; each file has an id that follows from its form and content. The
readers of `datasets` give up a whole chunk at a bad line and can't say where it was. So lines and CSV records are read
here, exact to the byte, and handed on as a `datasets.IterableDataset`. Of Parquet, only the column of texts is read.

A document is quarantined, with the reason, for invalid UTF-8, a NUL byte, a lone surrogate, JSON that is no object with
a text under the key, a CSV record with an unclosed quote (one that goes on for more than `max_bytes` counts as such) or
another number of fields than the header, and for being empty, too short or too long. A file is refused
(`UnreadableFile`) when it is cut or damaged under its compression, is UTF-16, or lacks the column. Blank lines, a byte
order mark and CRLF are accepted silently; so is an empty file, which has no documents.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import gzip
import hashlib
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from gpt2.data import hub, samples
from gpt2.store.artifact import IS_POINTER, LFS, digest, file_sha256

if TYPE_CHECKING:
    from datasets import IterableDataset

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}
CHANGED = ("lastmodified", "mtime", "updated", "created")  # names of the time of change in fsspec's file systems


def split_suffix(path: str) -> tuple[str, str | None]:
    """Return (format, compression) of a file name, or of a URL's path; `ValueError` lists the formats."""
    lower = (urlsplit(path).path if is_web(path) else path).lower()
    for suffix, compression in COMPRESSIONS.items():
        for format in FORMATS:
            if lower.endswith(format + suffix):
                return format, compression
    raise ValueError(f"{path} is not one of {', '.join(FORMATS)}, plain or with .gz or .zst; convert or rename it")


def is_web(path: str) -> bool:
    """Return True for an HTTP address, which may end in a query (`?download=1`)."""
    return path.startswith(("http://", "https://"))


def readable(path: str) -> bool:
    """Return True if the file name has a suffix that we read."""
    with contextlib.suppress(ValueError):
        return bool(split_suffix(path))
    return False


def locate(source: str) -> tuple[Any, str]:
    """Return (fsspec's file system, path in it) of a source; `ValueError` if there can be no such source."""
    if "::" in source:
        if not Path(source).exists():
            raise ValueError(f"{source}: chained addresses are not read; unpack the file, and give its own address")
        return fsspec.filesystem("file"), str(Path(source).absolute())
    try:
        return fsspec.core.url_to_fs(hub.reach(source))
    except ImportError as error:
        raise ValueError(f"{source}: {error}") from None


def is_pattern(source: str) -> bool:
    """Return True if a source that does not exist is a glob."""
    return "::" not in source and any(c in source for c in ("*[" if is_web(source) else "*?["))


def listed(source: str) -> tuple[Any, list[str]]:
    """Return (file system, all files of a source, sorted); `ValueError` if it does not exist.

    A name that exists is that file or folder, also with `[2013]` in it. Else it may be a glob.
    """
    fs, path = locate(source)
    fs.invalidate_cache()
    if (readable(path) or not is_web(path)) and fs.isfile(path):
        split_suffix(path)
        return fs, [path]
    if fs.isdir(path):
        return fs, sorted(fs.find(path))
    if is_pattern(source):
        return fs, sorted(fs.glob(escaped(fs, path)))
    if fs.exists(path):
        split_suffix(path)
    raise ValueError(f"{source} does not exist; give a file, a directory, a glob or an fsspec URL")


def escaped(fs: Any, pattern: str) -> str:
    """Return a glob in which brackets and marks in the name of an existing folder stand for themselves."""
    folder, _, name = pattern.rpartition("/")
    if not is_pattern(folder):
        return pattern
    return f"{glob.escape(folder) if fs.isdir(folder) else escaped(fs, folder)}/{name}"


def expand(sources: list[str]) -> list[str]:
    """Return the files of all sources, sorted within each source.

    `ValueError` names a source that does not exist or has no known format.
    """
    files: list[str] = []
    for source in sources:
        fs, names = listed(source)
        names = [name for name in names if readable(name)]
        if not names:
            raise ValueError(f"{source} holds no file of {', '.join(FORMATS)} (plain, .gz or .zst); give another")
        files += names if "file" in fs.protocol else [fs.unstrip_protocol(name) for name in names]
    return files


def source_id(source: str) -> str:
    """Return the identity of what reading a source gives: it follows from form, compression and content.

    A remote file's content is its address with the version that the server gives (ETag, or time of change and size).
    Without a version, and for a local file, it is the sha256 of the bytes.
    """
    if source.startswith(samples.PREFIX):
        return samples.identity(source.removeprefix(samples.PREFIX))
    fs, path = locate(source)
    format = [*split_suffix(path)] if readable(path) else [PurePosixPath(path).suffix.lower()]
    if "file" not in fs.protocol:
        return digest([format, version(fs, path)])
    local = Path(path)
    if local.is_dir():
        files = sorted(p for p in local.rglob("*") if p.is_file())
        return digest([[p.relative_to(local).as_posix(), file_sha256(p)] for p in files])
    try:
        return digest([format, file_sha256(local)])
    except OSError as error:
        raise ValueError(f"{source} can't be read ({error.strerror}); check the path") from None


def version(fs: Any, path: str) -> list[str]:
    """Return what identifies the content of a remote file; `ValueError` if there is none."""
    address = fs.unstrip_protocol(path)
    try:
        facts = {re.sub("[-_]", "", name.lower()): str(value) for name, value in fs.info(path).items() if value}
        changed = next((facts[name] for name in CHANGED if name in facts), None)
        if tag := facts.get("etag") or facts.get("blobid"):  # the latter is the hub's
            return [address, tag.strip('"')]
        if changed and "size" in facts:
            return [address, changed, facts["size"]]
        with fs.open(path, "rb") as stream:
            return [hashlib.file_digest(stream, "sha256").hexdigest()]
    except FileNotFoundError:
        raise ValueError(f"{address} does not exist; check the address and the credentials") from None


BLOCK = 256  # documents in a block
TEXTUAL = ("string", "large_string", "string_view", "binary", "large_binary")  # Impala and Hive write text as binary
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
    rows = documents(path, text_field, max_bytes)
    while block := list(islice(rows, BLOCK)):
        yield dict(zip(Document._fields, map(list, zip(*block, strict=True)), strict=True))


def documents(path: str, text_field: str, max_bytes: int) -> Iterator[Document]:
    """Yield the documents of one file, in order; raise `UnreadableFile`."""
    format, compression = split_suffix(path)
    if format == ".parquet":
        yield from parquet_documents(path, text_field)
        return
    read = {".txt": text_documents, ".jsonl": json_documents, ".csv": csv_documents}[format]
    fs, place = locate(path)
    try:
        with fs.open(place, "rb") as raw:
            yield from read(path, Lines(path, decompressed(cast(BinaryIO, raw), compression), max_bytes), text_field)
    except (EOFError, zlib.error, OSError) as error:
        what = "is cut or damaged" if compression else "can't be read"
        raise UnreadableFile(fault(path, what, error)) from None


def fault(path: str, otherwise: str, error: Exception) -> str:
    """Return what is wrong with a file that could not be read, and what to do."""
    fs, place = locate(path)
    with contextlib.suppress(OSError), fs.open(place, "rb") as raw:
        if raw.read(len(LFS)) == LFS:
            return f"{path} {IS_POINTER}"
    if "requires too much memory" in str(error):  # pyarrow bounds the window to 128 MB
        return f"{path} needs a window over 128 MB (it was made with zstd --long); unpack it with zstd -d --long=31"
    return f"{path} {otherwise} ({str(error).partition(chr(10))[0][:200]}); get the file again"


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
            if data.startswith(LFS):
                raise UnreadableFile(f"{self.path} {IS_POINTER}")
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
    """Yield a document per row. Only the column of texts is read, as bytes: one bad text fails no other."""
    fs, place = locate(path)
    try:
        with fs.open(place, "rb") as raw:
            file = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False)  # no row group is held whole
            names = file.schema_arrow.names
            if text_field not in names:
                raise UnreadableFile(
                    f"{path} has no column {text_field!r}; it has {', '.join(names)[:500]}: set corpus.text_field"
                )
            number = 0
            for batch in file.iter_batches(BLOCK, columns=[text_field], use_threads=False):
                column = batch.column(text_field)
                if pa.types.is_dictionary(column.type):
                    column = column.cast(column.type.value_type)
                textual = str(column.type) in TEXTUAL
                for value in (column.cast(pa.large_binary()) if textual else column).to_pylist():
                    number += 1
                    if not textual or value is None:
                        yield Document("", number, None, f"{text_field!r} is {type(value).__name__}, not text")
                        continue
                    text, wrong = decode(value)
                    yield Document(excerpt(value) if wrong else text, number, None, wrong)
    except UnreadableFile:
        raise
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        raise UnreadableFile(fault(path, "can't be read as Parquet", error)) from None
