"""The code that a result depends on: modules found by walking imports, and the hash of their syntax trees."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path

PROJECT = ("gpt2", "cluster", "flows")
"""Packages whose modules are walked; the versions of all others are pinned."""
TEMPLATES = ("gpt2.pages", "templates")
"""The package and the folder of files that modules and other templates name."""


def code_version(*modules: str) -> str:
    """Return the sha256 (hex) of modules' code: everything counts except comments, docstrings and layout.

    A package counts with every module in it. `PACKAGE:FILE` names a file that is not Python, such as a template: all
    its bytes count.
    """
    versions = [pair for name in modules for pair in module_versions(name)]
    return hashlib.sha256(json.dumps(versions).encode()).hexdigest()


@cache
def module_versions(name: str) -> list[list[str]]:
    """Return [module, sha256 of its syntax tree] of a module, or of each module of a package."""
    package, _, file = name.partition(":")
    if file:
        content = resources.files(package).joinpath(file).read_bytes()
        return [[name, hashlib.sha256(content).hexdigest()]]
    return [[module, tree_version(path)] for module, path in module_files(name)]


def tree_version(path: Path) -> str:
    """Return the sha256 (hex) of a file's syntax tree without docstrings and other expressions that are constants."""
    tree = parse(path.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                b for b in body if not (isinstance(b, ast.Expr) and isinstance(b.value, ast.Constant))
            ]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def module_files(name: str) -> list[tuple[str, Path]]:
    """Return the sorted (module, file) pairs of a module, or of a package and every module in it."""
    path = module_path(name)
    assert path is not None, name
    if path.name != "__init__.py" or name.endswith(".__init__"):
        return [(name, path)]
    files = sorted(file.relative_to(path.parent).with_suffix("") for file in path.parent.rglob("*.py"))
    return [(".".join((name, *file.parts)).removesuffix(".__init__"), path.parent / f"{file}.py") for file in files]


def module_path(name: str) -> Path | None:
    """Return the file of a module, or a package's `__init__.py`; None if there is none. Nothing is imported."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*rest) if rest else Path(spec.origin).with_suffix("")
    found = (file for file in (path.with_name(f"{path.name}.py"), path / "__init__.py") if file.is_file())
    return next(found, None)


def parse(source: bytes, attempts: int = 20) -> ast.AST:
    """Return `ast.parse(source)`.

    Retry if another thread that parses at the same time makes it fail (CPython gh-106905).
    """
    for _ in range(attempts):
        with suppress(SystemError):
            return ast.parse(source)
        time.sleep(0.05)
    return ast.parse(source)


def depends_on(entries: Collection[str], harmless: Collection[str] = ()) -> tuple[str, ...]:
    """Return the entries and all that they import in this project at any depth, sorted, for `code_version`.

    Imports inside functions count; those for types alone do not. Of a package that is imported `__init__` counts.
    `harmless` modules, the modules of `harmless` rooms and settings (each `config`, whose values are part of a key) are
    left out, and so is what only they import.
    """
    seen: set[str] = set()
    ahead = list(entries)
    while ahead:
        if (name := ahead.pop()) not in seen:
            seen.add(name)
            ahead += [n for n in named_by(name) if not is_harmless(n, harmless)]
    return tuple(sorted(f"{name}.__init__" if is_package(name) else name for name in seen))


def is_package(name: str) -> bool:
    """Return True if the name is a package's: importing it runs its `__init__` alone."""
    path = module_path(name) if ":" not in name else None
    return path is not None and path.name == "__init__.py"


def is_harmless(name: str, harmless: Collection[str]) -> bool:
    """Return True if a module holds settings, is one of `harmless`, or lies in one of these rooms."""
    inside = any(name.startswith(f"{room}.") for room in harmless if "." in room)
    return inside or name in harmless or name.endswith(".config")


@cache
def named_by(name: str) -> frozenset[str]:
    """Return the modules of this project that a module imports, and the templates that it or a template names."""
    package, _, file = name.partition(":")
    if file:
        text = resources.files(package).joinpath(file).read_text("utf-8")
        return frozenset(template for word in re.findall(r'"([\w.]+)"', text) for template in templates(word))
    path = module_path(name)
    assert path is not None, name
    found: set[str] = set()
    for node in running_nodes(parse(path.read_bytes())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.update(templates(node.value))
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PROJECT:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if module_path(inner) else node.module)
    return frozenset(n for n in found if n.split(".")[0] in PROJECT)


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a syntax tree, except the blocks that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                yield other
                yield from running_nodes(other)
            continue
        yield node
        yield from running_nodes(node)


def templates(word: str) -> list[str]:
    """Return the template of that name, with or without its suffix, as `PACKAGE:FILE` in a list; else an empty one."""
    package, folder = TEMPLATES
    if not re.fullmatch(r"[\w.]+", word):
        return []
    top = module_path(package)
    names = (name for name in (word, f"{word}.j2") if top and (top.parent / folder / name).is_file())
    return [f"{package}:{folder}/{name}" for name in names]
