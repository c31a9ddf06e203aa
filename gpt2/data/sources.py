"""Source files: what a file, folder, glob or fsspec address holds, what is left out of it, and its content's id."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import fsspec

from gpt2.data import samples
from gpt2.store.artifact import digest, file_sha256

FORMATS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
ALSO = {".ndjson": ".jsonl", ".json": ".jsonl", ".parquet.brotli": ".parquet"}
"""Further suffixes, and the formats that they stand for."""
READ = f"{', '.join(FORMATS)} (.json and .ndjson as .jsonl; plain, .gz or .zst)"
COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}
PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip")
CHANGED = ("lastmodified", "mtime", "updated", "created")  # names of the time of change in fsspec's file systems
DOCUMENT = re.compile(rb"\s*(\[\s*[{\r\n]|\{\s*[\r\n])")
"""The beginning of JSON that goes on over several lines: an array of objects, or an indented object."""


class UnreadableFile(ValueError):
    """A file that can't be used at all."""


def split_suffix(path: str) -> tuple[str, str | None]:
    """Return (format, compression) of a file name, or of a URL's path; `ValueError` lists the formats."""
    lower = (urlsplit(path).path if is_web(path) else path).lower()
    for suffix, compression in COMPRESSIONS.items():
        for name in (*FORMATS, *ALSO):
            if lower.endswith(name + suffix):
                return ALSO.get(name, name), compression
    raise ValueError(f"{path} is not one of {READ}; convert or rename it")


def is_web(path: str) -> bool:
    """Return True for an HTTP address, which may end in a query (`?download=1`)."""
    return path.startswith(("http://", "https://"))


def is_folder(fs: Any, path: str) -> bool:
    """Return True for a folder; an HTTP address with a suffix that we read is a file, whatever links it has."""
    return not (is_web(path) and readable(path)) and fs.isdir(path)


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
        return fsspec.core.url_to_fs(samples.reach(source))
    except (ImportError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from None


def is_pattern(source: str) -> bool:
    """Return True if a source that does not exist is a glob."""
    return "::" not in source and any(c in source for c in ("*[" if is_web(source) else "*?["))


class Listing(NamedTuple):
    """The files of a source, sorted."""

    fs: Any
    """Fsspec's file system."""
    files: list[str]
    """Those that are read."""
    others: list[str]
    """The suffixes of those that are left out, without hidden files and marks such as `_SUCCESS`."""


def listed(source: str) -> Listing:
    """Return the files of a source; `ValueError` if it does not exist.

    A name that exists is that file or folder, also with `[2013]` in it. Else it may be a glob.
    """
    fs, path = locate(source)
    with reached(source):
        fs.invalidate_cache()
        return files_at(source, fs, path)


@contextlib.contextmanager
def reached(source: str) -> Iterator[None]:
    """Raise `ValueError` with the source's name for any error of the library that reaches it."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # each library has kinds of its own
        why = str(error).partition("\n")[0][:200] or type(error).__name__
        raise ValueError(
            f"{source} can't be reached ({why}); check the address, the credentials and the network"
        ) from None


def files_at(source: str, fs: Any, path: str) -> Listing:
    """Return the files of a source that is at a path of a file system."""
    if (readable(path) or not is_web(path)) and fs.isfile(path):
        split_suffix(path)
        return Listing(fs, [path], [])
    if is_folder(fs, path):
        return sorted_out(fs, fs.find(path))
    if is_pattern(source):
        return sorted_out(fs, fs.glob(escaped(fs, path)))
    if fs.exists(path):
        split_suffix(path)
    raise ValueError(f"{source} does not exist; give a file, a directory, a glob or an fsspec URL")


def sorted_out(fs: Any, names: Sequence[str]) -> Listing:
    """Return the files of a folder or glob. JSON that is no lines, such as a configuration, is left out."""
    files, others = [], []
    for name in sorted(names):
        path = PurePosixPath(name)
        suffix = "".join(path.suffixes[-2:] if path.suffix in PACKED else path.suffixes[-1:]).lower()
        if not readable(name):
            if not path.name.startswith((".", "_")):
                others.append(suffix or "without a suffix")
        elif suffix == ".json" and DOCUMENT.match(beginning(fs, name)):
            others.append(".json without an object per line")
        else:
            files.append(name)
    return Listing(fs, files, others)


def beginning(fs: Any, name: str) -> bytes:
    """Return the first bytes of a file, none if it can't be read."""
    with contextlib.suppress(OSError), fs.open(name, "rb") as raw:
        return raw.read(200)
    return b""


def escaped(fs: Any, pattern: str) -> str:
    """Return a glob in which brackets and marks in the name of an existing folder stand for themselves."""
    folder, _, name = pattern.rpartition("/")
    if not is_pattern(folder):
        return pattern
    return f"{glob.escape(folder) if fs.isdir(folder) else escaped(fs, folder)}/{name}"


def expand(sources: Sequence[str]) -> list[str]:
    """Return the files of all sources, sorted within each source.

    `ValueError` names a source that does not exist or has no known format.
    """
    files: list[str] = []
    for source in sources:
        fs, names, others = listed(source)
        if not names:
            raise ValueError(f"{source} holds no file of {READ}{'; it has ' * bool(others) + counted(others)}")
        files += [address(fs, name) for name in names]
    return files


def address(fs: Any, name: str) -> str:
    """Return a file's path or, where it is not local, its URL."""
    return name if "file" in fs.protocol else fs.unstrip_protocol(name)


def left_out(sources: Sequence[str]) -> str | None:
    """Return how many files in folders and globs are not read, by suffix; None if all are. Samples have none."""
    others = [s for source in sources if not source.startswith(samples.PREFIX) for s in listed(source).others]
    plural = "s" * (len(others) > 1)
    return f"{len(others):,} file{plural} left out: {counted(others)}; read are {READ}" if others else None


def counted(suffixes: Sequence[str]) -> str:
    """Return how many files have each suffix, the most frequent first."""
    return ", ".join(f"{n:,} {suffix}" for suffix, n in Counter(suffixes).most_common())


def source_id(source: str) -> str:
    """Return the identity of what reading a source gives: it follows from form, compression and content.

    A remote file's content is its address with the version that the server gives (ETag, or time of change and size).
    Without a version, and for a local file, it is the sha256 of the bytes. That of a glob or a remote folder follows
    from its files.
    """
    if source.startswith(samples.PREFIX):
        return samples.identity(source.removeprefix(samples.PREFIX))
    fs, path = locate(source)
    with reached(source):
        return content_id(source, fs, path)


def content_id(source: str, fs: Any, path: str) -> str:
    """Return the identity of a source that is at a path of a file system."""
    local = Path(path)
    if "file" in fs.protocol and local.is_dir():
        found = sorted(p for p in local.rglob("*") if p.is_file())
        return digest([[p.relative_to(local).as_posix(), file_sha256(p)] for p in found])
    if files := several(fs, source, path):
        return digest([source_id(file) for file in files])
    format = [*split_suffix(path)] if readable(path) else [PurePosixPath(path).suffix.lower()]
    if "file" not in fs.protocol:
        return digest([format, version(fs, path)])
    try:
        return digest([format, file_sha256(local)])
    except OSError as error:
        raise ValueError(f"{source} can't be read ({error.strerror}); check the path") from None


def several(fs: Any, source: str, path: str) -> list[str]:
    """Return the files of a remote folder or a glob; none for what is, or may be, one file."""
    a_glob = is_pattern(source) and not fs.exists(path)
    return expand([source]) if a_glob or ("file" not in fs.protocol and is_folder(fs, path)) else []


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
