"""The files of a model that people pull: their allowed names, their manifest, task.json, and safe reading of JSON.

A model is data: tensors in safetensors, settings and texts. A manifest `{name: {"sha256": hex, "size": bytes}}` names
all of its files. With a manifest from a trusted place, the files may come from anywhere. Without one, hostile JSON is
refused, and links to files elsewhere are not followed.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from gpt2.settings import Settings
from gpt2.store.artifact import file_sha256

MODEL = "model"
"""Name of the model's folder in a training's output or in an artifact."""
TASK_FILE = "task.json"
"""The file that names the model's kind, with the facts that its predictor needs."""
BASE_NAME = "base"
"""The kind of a pretrained model. It is also that of a directory without `TASK_FILE`, as written by `transformers`."""


def write_task(out: Path, kind: str, /, **facts: Any) -> None:
    """Write task.json: the model's kind, and the facts that its predictor reads."""
    content = {"task": kind, **facts}
    (out / TASK_FILE).write_text(json.dumps(content, indent=1 if facts else None))


def read_task(directory: Path) -> dict[str, Any]:
    """Return the facts in task.json, with the kind as `task`; without the file the kind is `BASE_NAME`.

    `ValueError` if the file is not a JSON object, is not safe to read, or names no kind.
    """
    path = directory / TASK_FILE
    if not path.exists():
        return {"task": BASE_NAME}
    facts = read_json(path)
    if not isinstance(facts, dict) or not isinstance(facts.get("task"), str):
        raise ValueError(f"{path} does not name a task; give the directory that a training wrote")
    return facts


NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}\.(safetensors|json|jsonl|txt|md)", re.ASCII)
"""Pattern of an allowed file name: a suffix of files that are read and never run. A model has no folders."""
MOST = 256
"""Largest number of files in a model."""

Manifest = dict[str, dict[str, Any]]
Schema = TypeVar("Schema", bound=Settings)


class RefusedModel(ValueError):
    """A model's files are missing, cut, altered or not allowed. None of them was loaded."""


def inside(path: Path) -> None:
    """Raise `ValueError` if a path is a link to a file outside its folder. The hub's cache may link to its `blobs`."""
    folder = path.parent.resolve()
    allowed = [folder, folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else [folder]
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # the latter before Python 3.13
        raise ValueError(f"{path} is a link to itself; put the file itself there") from None
    if not any(target.is_relative_to(place) for place in allowed):
        raise ValueError(f"{path} is a link to {target}, outside the model's folder; put the file itself there")


def read_json(path: Path) -> Any:
    """Return the value in a model's JSON file; `ValueError` if the file is missing or not safe to read."""
    inside(path)
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; give a model directory with config.json and model.safetensors") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}; is it a file?") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON, or nested too deeply; is it damaged?") from None


def validated(schema: type[Schema], values: Any, path: Path) -> Schema:
    """Return a file's values as settings; a one-line `ValueError` names the first wrong value."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        item = error.errors()[0]
        value = f"{'.'.join(map(str, item['loc']))}={reprlib.repr(item['input'])}: " if item["loc"] else ""
        raise ValueError(f"{path}: {value}{item['msg'].removeprefix('Value error, ')}") from None


def check_name(name: object) -> str:
    """Return the name; `RefusedModel` if a model may not have a file of that name."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RefusedModel(
            f"it has {name!r:.200}; a model has only .safetensors, .json, .jsonl, .txt and .md files, in no folder"
        )
    return name


def sizes(directory: Path) -> dict[str, int]:
    """Return {name: size in bytes} of a directory's files; `RefusedModel` for folders, links and code."""
    by_name = {}
    for entry in sorted(os.scandir(directory), key=lambda e: e.name):
        check_name(entry.name)
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedModel(f"its {entry.name} is a link or a folder; a model has plain files only")
        by_name[entry.name] = status.st_size
    return by_name


def manifest(directory: Path) -> Manifest:
    """Return the manifest of a directory; `RefusedModel` for files that a model may not have."""
    entries = {name: {"sha256": file_sha256(directory / name), "size": size} for name, size in sizes(directory).items()}
    if not 0 < len(entries) <= MOST:
        raise RefusedModel(f"it has {len(entries)} files; a model has 1 to {MOST}")
    return entries


def read_manifest(text: str) -> Manifest:
    """Return a manifest from its JSON; `RefusedModel` if it is invalid or names files that a model may not have."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise RefusedModel("its manifest is not JSON") from None
    if not isinstance(entries, dict) or not 0 < len(entries) <= MOST:
        raise RefusedModel(f"its manifest does not list 1 to {MOST} files")
    for name, entry in entries.items():
        check_name(name)
        sound = isinstance(entry, dict) and entry.keys() == {"sha256", "size"}
        if not sound or type(entry["size"]) is not int or not re.fullmatch("[0-9a-f]{64}", str(entry["sha256"])):
            raise RefusedModel(f"its manifest has no sha256 and size for {name}")
    return entries


def compare_sizes(expected: Mapping[str, Mapping[str, Any]], found: Mapping[str, int | None]) -> None:
    """Raise `RefusedModel` for a file that is missing, not listed, or of another size (None: unknown)."""
    for name in found:
        check_name(name)
        if name not in expected:
            raise RefusedModel(f"its {name} is not in its manifest")
    for name, entry in expected.items():
        if name not in found:
            raise RefusedModel(f"its {name} is missing")
        if found[name] not in (None, entry["size"]):
            raise RefusedModel(f"its {name} has {found[name]} bytes, its manifest says {entry['size']}")


def verify(directory: Path, expected: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `RefusedModel` for the first file that differs from the manifest. Every byte is read."""
    compare_sizes(expected, sizes(directory))
    for name, entry in expected.items():
        if file_sha256(directory / name) != entry["sha256"]:
            raise RefusedModel(f"its {name} was altered: its sha256 is not what its manifest says")
