"""Pages that keep their address: the latest of each kind, in the home."""

from __future__ import annotations

from pathlib import Path

from cluster.home import home
from gpt2.artifact import write_atomically

PAGES = "pages"


def path(name: str) -> Path:
    """Where the page of that name lies."""
    return home() / PAGES / f"{name}.html"


def keep(name: str, text: str) -> Path:
    """Write the page of that name, whole or not at all; returns its path, which stays the same."""
    found = path(name)
    found.parent.mkdir(exist_ok=True)
    write_atomically(found, text.encode())
    return found
