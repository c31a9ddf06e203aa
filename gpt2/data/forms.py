"""The forms of files: compression, encoding, separator and quotes are found; out come lines, csv records, batches.

What a file says wins, then the settings, then what is found: `.tsv` has tabs, a byte order mark names its encoding.
Bytes that are no UTF-8 are of Windows-1252 where most of the file's are not UTF-8. A quote inside quotes is written
twice or, as by Spark and MySQL, after a backslash. Nothing here holds a whole file.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import re
import shutil
import tempfile
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice, takewhile
from operator import attrgetter
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from gpt2.data.config import FileForm
from gpt2.data.sources import DOCUMENT, UnreadableFile, locate, split_suffix
from gpt2.store.artifact import IS_POINTER, LFS

BUFFER = 1 << 20
BLOCK = 1 << 16
"""Bytes split into lines at once."""
LOOKED_AT = 1 << 26
"""Bytes of a file, at most, by which its encoding and its quotes are judged."""
UNBOUNDED = 1 << 40
"""A length that no line has."""
SEPARATORS = ",;\t|"
JUDGED = 100
"""Records by which separators are compared."""
AHEAD = 100
"""Lines of a csv read at once, at most, if each of them is a record without a fault."""
DAMAGED, ESCAPED = re.compile("[\udc80-\udcff]"), re.compile(r'(\\+)"')
NOT_1252 = (b"\x81", b"\x8d", b"\x8f", b"\x90", b"\x9d")
"""Bytes without a meaning in Windows-1252; with one of them a file is Latin-1."""
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
STRINGS = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary, pa.types.is_large_binary,
    pa.types.is_binary_view, pa.types.is_fixed_size_binary,
)  # fmt: skip
"""Tests of the types of strings and bytes."""


def textual(type: pa.DataType) -> bool:
    """Return whether a type of Parquet is that of text, or of bytes, as which Impala and Hive write it."""
    return any(is_of(type) for is_of in STRINGS)


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open a file, local or at an fsspec address, as a stream of its decompressed bytes; raise `UnreadableFile`."""
    _, compression = split_suffix(path)
    fs, place = locate(path)
    try:
        with fs.open(place, "rb") as raw:
            yield decompressed(cast(BinaryIO, raw), compression)
    except (EOFError, zlib.error, OSError, pa.ArrowException) as error:
        raise UnreadableFile(fault(path, "is cut or damaged" if compression else "can't be read", error)) from None


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
        return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), BUFFER))
    # fsspec's remote files can't read a line up to a given size.
    return raw if isinstance(raw, io.BufferedReader) else cast(BinaryIO, io.BufferedReader(cast(Any, raw), BUFFER))


class Recoded(io.RawIOBase):
    """A stream of another encoding as UTF-8. What is damaged in it is no UTF-8 either."""

    def __init__(self, path: str, raw: BinaryIO, encoding: str):
        self.path, self.raw, self.pending = path, raw, b""
        self.errors = "surrogatepass" if encoding.startswith("utf-") else "surrogateescape"
        self.encoding, self.decoder = encoding, codecs.getincrementaldecoder(encoding)(self.errors)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.pending and (data := self.raw.read(BUFFER)):
            self.pending = self.text(data)
        self.pending = self.pending or self.text(b"", final=True)
        given, self.pending = self.pending[: len(buffer)], self.pending[len(buffer) :]
        buffer[: len(given)] = given
        return len(given)

    def text(self, data: bytes, final: bool = False) -> bytes:
        try:
            return self.decoder.decode(data, final).encode("utf-8", self.errors)
        except UnicodeError:
            raise UnreadableFile(
                f"{self.path} is no {self.encoding}, or is cut; get it again or set encoding"
            ) from None


def wide(raw: BinaryIO) -> str | None:
    """Return the encoding of a stream of UTF-16 or UTF-32, by its mark or the zeros of its first letters, or None."""
    start = cast(Any, raw).peek(4)[:4]
    for mark, encoding in MARKS.items():
        if start.startswith(mark):
            return encoding
    zeros = [byte == 0 for byte in start]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if zeros == [True, False, True, False] else None


class Line(NamedTuple):
    """A line without its end."""

    data: bytes
    number: int
    offset: int | None
    """Its place in the decompressed file; None if that is not UTF-8, or of Windows-1252."""
    too_long: bool
    odd_quotes: bool
    """True if the dropped end of a line that is too long has an odd number of double quotes."""
    end: str
    """The line's end; "" if the file ends here."""


TOO_LONG = attrgetter("too_long")


class Lines:
    """The lines of a file, with line numbers and offsets. Only the beginning of a too long line is kept."""

    def __init__(self, path: str, raw: BinaryIO, form: FileForm, max_bytes: int):
        encoding = codecs.lookup(form.encoding).name if form.encoding else None
        encoding = wide(raw) or encoding
        single = encoding in (None, "utf-8", "utf-8-sig", "cp1252", "iso8859-1")
        if not single:
            raw = cast(BinaryIO, io.BufferedReader(Recoded(path, raw, cast(str, encoding)), BUFFER))
        self.path, self.raw, self.max_bytes, self.in_place = path, raw, max_bytes, single
        self.encoding = encoding if encoding in ("cp1252", "iso8859-1") else "utf-8"
        self.certain = encoding is not None
        self.number, self.offset = 0, 0
        self.returned: deque[Line] = deque()

    def __iter__(self) -> Lines:
        return self

    def give_back(self, lines: list[Line]) -> None:
        """Put lines back, to be read before the rest."""
        self.returned.extendleft(reversed(lines))

    def several(self) -> list[Line]:
        """Return the next lines, some that are in memory together or one; none at the end of the file."""
        first = next(self, None)
        return [first, *islice(iter(self.returned.popleft, None), min(AHEAD, len(self.returned)))] if first else []

    def fill(self) -> None:
        """Split whole lines out of the stream's buffer at once, if it has some and none is too long."""
        data = cast(Any, self.raw).peek(1)[:BLOCK]
        data = data[: data.rfind(b"\n") + 1]
        parts = data.split(b"\n")[:-1]
        if not parts or max(map(len, parts)) > self.max_bytes:
            return
        number, offset = self.number, self.offset
        for part in parts:
            number += 1
            end, size = "\n", len(part) + 1
            if part.endswith(b"\r"):
                part, end = part[:-1], "\r\n"
            self.returned.append(Line(part, number, offset if self.in_place else None, False, False, end))
            offset += size
        self.number, self.offset = number, offset
        self.raw.read(len(data))

    def __next__(self) -> Line:
        if not self.returned and self.number:
            self.fill()
        if self.returned:
            return self.returned.popleft()
        data = self.raw.readline(self.max_bytes + 2)
        if not data:
            raise StopIteration
        offset, size, too_long, quotes, last = self.offset, len(data), False, 0, data
        if size == self.max_bytes + 2 and not data.endswith(b"\n"):
            too_long = True
            while last and not last.endswith(b"\n"):
                last = self.raw.readline(BUFFER)
                size, quotes = size + len(last), quotes + last.count(b'"')
        self.number, self.offset = self.number + 1, offset + size
        if self.number == 1:
            if data.startswith(LFS):
                raise UnreadableFile(f"{self.path} {IS_POINTER}")
            data = data.removeprefix(b"\xef\xbb\xbf")
        end = "\r\n" if last.endswith(b"\r\n") else "\n" if last.endswith(b"\n") else ""
        data = data.removesuffix(b"\n").removesuffix(b"\r")
        return Line(data, self.number, offset if self.in_place else None, too_long, quotes % 2 == 1, end)

    def decoded(self, data: bytes) -> tuple[str, str | None]:
        """Return (text, fault or None). The first bytes that are no UTF-8 decide on what the file is."""
        try:
            return data.decode(self.encoding), None
        except UnicodeDecodeError as error:
            if self.certain:
                name = "UTF-8" if self.encoding == "utf-8" else self.encoding
                return data.decode(self.encoding, "surrogateescape"), f"invalid {name} at byte {error.start}"
        self.encoding, self.certain = bytewise(self.path), True
        return self.decoded(data)


@contextlib.contextmanager
def lines_of(path: str, form: FileForm, max_bytes: int = UNBOUNDED) -> Iterator[Lines]:
    """Open a file as its lines; raise `UnreadableFile`."""
    with opened(path) as raw:
        yield Lines(path, raw, form, max_bytes)


def json_lines(lines: Lines) -> Iterator[Line]:
    """Yield the lines that are not blank; raise `UnreadableFile` for JSON that has no object per line."""
    fresh = True
    for line in lines:
        if line.data.strip():
            if fresh and DOCUMENT.match(line.data + b"\n"):
                raise UnreadableFile(
                    f"{lines.path} is one JSON text over several lines; write an object per line, as by "
                    f"jq -c '.[]' (of an array) or jq -c ."
                )
            fresh = False
            yield line


def bytewise(path: str) -> str:
    """Return the encoding of a file in which some bytes are no UTF-8: UTF-8 with damage, Windows-1252 or Latin-1."""
    decoder, seen, bad, beyond, latin = codecs.getincrementaldecoder("utf-8")("surrogateescape"), 0, 0, 0, False
    with opened(path) as raw:
        while seen < LOOKED_AT and (data := raw.read(BUFFER)):
            text = decoder.decode(data)
            seen += len(data)
            bad += sum(1 for _ in DAMAGED.finditer(text))
            beyond += len(text) - len(text.encode("ascii", "ignore"))
            latin |= any(byte in data for byte in NOT_1252)
    if not bad or beyond > 2 * bad:  # most characters beyond ASCII are UTF-8
        return "utf-8"
    return "iso8859-1" if latin else "cp1252"


class Record(NamedTuple):
    """A record of a csv file."""

    first: Line
    fields: list[str]
    """Its fields, decoded; those of a record with a fault may be missing."""
    wrong: str | None
    """The fault; None for a good record."""
    bad: dict[int, str] = {}  # noqa: RUF012 - never changed
    """The fault of each field whose bytes can't be decoded."""
    stray: bool = False
    """True if it took lines that are records of their own."""


def csv_file(lines: Lines, form: FileForm) -> tuple[list[str], Iterator[Record]]:
    """Return (names of the columns, the records under the header); raise `UnreadableFile` if it has none.

    An empty file has no columns. A name that comes twice is numbered, as by pandas.
    """
    separator = form.separator or ("\t" if split_suffix(lines.path)[0] == ".tsv" else separator_of(lines))
    records = csv_records(lines, separator, quotes_after_backslash(lines.path, form, separator))
    header = next(records, None)
    if header is None:
        return [], records
    wrong = header.wrong or next(iter(header.bad.values()), None)
    if wrong:
        alone = "; its lines end in a carriage return alone" * ("new-line character" in wrong)
        raise UnreadableFile(f"{lines.path} has no readable header ({wrong}{alone}); mend its first line")
    return numbered(header.fields), records


def numbered(names: list[str]) -> list[str]:
    """Return names of columns, each once; one without a name is `Unnamed: 0`, as by pandas."""
    found: dict[str, None] = {}
    for place, name in enumerate(names):
        name = name or f"Unnamed: {place}"
        again = (f"{name}.{n}" for n in range(1, len(names) + 1))
        found[next(other for other in (name, *again) if other not in found)] = None
    return list(found)


def separator_of(lines: Lines) -> str:
    """Return the separator by which the first records have fields, as many as the header; a comma if none has."""
    start: list[Line] = []
    while len(start) < JUDGED and sum(len(line.data) for line in start) < BUFFER and (line := next(lines, None)):
        start.append(line)
    lines.give_back(start)
    text = [line.data.decode("latin-1") + line.end for line in start]
    best, most = ",", 0.0
    for separator in SEPARATORS:
        rows = csv.reader(iter(text), delimiter=separator)
        widths: list[int] = []
        with contextlib.suppress(csv.Error):
            widths.extend(len(row) for row in rows if row)
        if widths and widths[0] > 1:
            share = sum(width == widths[0] for width in widths) / len(widths)
            if share > most:
                best, most = separator, share
    return best


def quotes_after_backslash(path: str, form: FileForm, separator: str) -> bool:
    """Return whether fewer records of a csv have a fault if a quote inside quotes is written after a backslash."""
    seen, tail = 0, b""
    with opened(path) as raw:
        raw = raw if wide(raw) is None else cast(BinaryIO, io.BufferedReader(Recoded(path, raw, cast(str, wide(raw)))))
        while seen < LOOKED_AT and (data := raw.read(BUFFER)):
            if b'\\"' in tail + data:
                break
            seen, tail = seen + len(data), data[-1:]
        else:
            return False

    def faults(escaped: bool) -> int:
        with lines_of(path, form, BUFFER) as lines:
            records = csv_records(lines, separator, escaped)
            return sum(record.wrong is not None for record in takewhile(lambda _: lines.offset < LOOKED_AT, records))

    doubled = faults(False)
    return bool(doubled) and faults(True) < doubled


def csv_records(lines: Lines, separator: str = ",", escaped: bool = False) -> Iterator[Record]:
    """Yield the records of a csv (RFC 4180) that are not blank, of which the first is the header.

    A record with fewer fields than the header has empty ones at its end, as Excel writes it. After a record with a
    stray quote, which takes following lines or never ends, reading goes on at the line after its first, and the lines
    that it had taken are records of their own, so that no line is read many times. Bytes are parsed as Latin-1, which
    loses nothing, and each field is decoded by itself: bad bytes stay local.
    """
    width = alone = done = 0  # `alone`: the lines up to this number are records of their own
    used: list[Line] = []

    def text_of(line: Line, encoding: str = "latin-1") -> str:
        text = line.data.decode(encoding)
        if escaped:
            text = ESCAPED.sub(lambda run: "\\" * (len(run[1]) // 2) + ('""' if len(run[1]) % 2 else '"'), text)
        return text + '"' + line.end if line.odd_quotes else text + line.end

    def regular(ahead: list[Line]) -> list[list[str]]:
        """Return the fields of lines of which each is a record without a fault; none if one is not."""
        rows: list[list[str]] = []
        with contextlib.suppress(csv.Error, UnicodeDecodeError):
            texts = [text_of(line, lines.encoding) for line in ahead]
            rows.extend(csv.reader(texts, delimiter=separator, strict=True))
        alike = len(rows) == len(ahead) and set(map(len, rows)) == {width}
        odd = any(map(TOO_LONG, ahead)) or (width == 1 and any(map(blank, rows)))
        return rows if alike and not odd else []

    def feed() -> Iterator[str]:
        size = 0
        used.clear()
        while (not used or used[-1].number > alone) and size <= lines.max_bytes and (line := next(lines, None)):
            used.append(line)
            size += len(line.data) + 1
            yield text_of(line)

    def record(fields: list[str], wrong: str | None, stray: bool) -> Record:
        nonlocal width
        width = width or len(fields)
        first, bad, several = used[0], {}, len(used) > 1
        if not wrong and (several or first.too_long) and any(line.too_long for line in used):
            wrong = "too long"
        if not wrong and len(fields) != width:
            if several or len(fields) > width:
                wrong, stray = f"{len(fields)} fields, the header has {width}", several
            else:
                fields += [""] * (width - len(fields))
        if several or not first.data.isascii():
            for place, field in enumerate(fields):
                fields[place], broken = lines.decoded(field.encode("latin-1"))
                if broken:
                    bad[place] = broken
        return Record(first, [] if stray else fields, wrong, bad, stray)

    csv.field_size_limit(min(lines.max_bytes + 16, 1 << 62))
    while ahead := lines.several():
        if rows := regular(ahead):
            for line, fields in zip(ahead, rows, strict=True):
                yield Record(line, fields, None)
            continue
        lines.give_back(ahead)
        while done < ahead[-1].number:
            fields, wrong = [], None
            try:
                fields = next(csv.reader(feed(), delimiter=separator, strict=True))
            except csv.Error as error:
                wrong = f"a stray quote: {error}" if b'"' in used[0].data else f"csv: {error}"
            done = used[-1].number
            if not wrong and blank(fields):
                continue
            made = record(fields, wrong, wrong is not None)
            if made.stray:
                alone, done = max([alone, *(line.number for line in used[-2:-1])]), used[0].number
                lines.give_back(used[1:])
            yield made


def blank(fields: list[str]) -> bool:
    """Return whether a record is a line of spaces."""
    return not fields or (len(fields) == 1 and fields[0].isascii() and fields[0].isspace())


@contextlib.contextmanager
def parquet_file(path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file to be read in batches; raise `UnreadableFile`. A compressed one is unpacked on disk first."""
    with opened(path) as stream, contextlib.ExitStack() as unpacked:
        whole: Any = stream
        if split_suffix(path)[1]:
            whole = unpacked.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, whole, BUFFER)
        try:
            file = pq.ParquetFile(whole, buffer_size=BUFFER, pre_buffer=False)  # no row group is held whole
            if twice := [name for name, n in Counter(file.schema_arrow.names).items() if n > 1]:
                raise UnreadableFile(f"{path} has the column {twice[0]!r} twice; rename one")
            yield file
        except UnreadableFile:
            raise
        except Exception as error:  # pyarrow raises many kinds for a damaged file
            raise UnreadableFile(fault(path, "can't be read as Parquet", error)) from None
