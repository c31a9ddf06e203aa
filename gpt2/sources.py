"""Where documents lie: files, directories, globs and fsspec URLs, and what identifies their content."""

from __future__ import annotations

from pathlib import Path

import fsspec

from gpt2 import samples
from gpt2.artifact import digest, file_sha256

FORMATS = (".txt", ".jsonl", ".csv", ".parquet")
COMPRESSIONS = {"": None, ".gz": "gzip", ".zst": "zstd"}


def split_suffix(path: str) -> tuple[str, str | None]:
    """(format, compression) of a file name; `ValueError` lists the formats."""
    lower = path.lower()
    for suffix, compression in COMPRESSIONS.items():
        for format in FORMATS:
            if lower.endswith(format + suffix):
                return format, compression
    raise ValueError(f"{path} is not one of {', '.join(FORMATS)}, plain or with .gz or .zst; convert or rename it")


def readable(path: str) -> bool:
    """Whether a file name has a suffix that we read."""
    try:
        split_suffix(path)
        return True
    except ValueError:
        return False


def expand(sources: list[str]) -> list[str]:
    """The files of all sources, sorted within each; `ValueError` names one that is missing or of no known format."""
    found: list[str] = []
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
            raise ValueError(f"{source} holds no file of {', '.join(FORMATS)} (plain, .gz or .zst)")
        found += [name if local else fs.unstrip_protocol(name) for name in names]
    return found


def source_id(source: str) -> str:
    """What identifies a source's content: sha256 of local files, the store's own key of remote ones."""
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
