"""HTML for people: self-contained pages from templates, with every value escaped."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

Cell = str | Mapping[str, Any]
"""A cell's text, or its parts for the macro `cell`: `text` with a `mark`, a `bar` or `bins`."""

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **content: Any) -> str:
    """Render the template `TEMPLATE.j2`; returns the page. All strings in `content` are escaped."""
    return ENVIRONMENT.get_template(f"{template}.j2").render(content)


def fragment(template: str, **content: Any) -> Markup:
    """Render a part of a page, which a page's template inserts as it is: the only markup that is not escaped."""
    return Markup(render(template, **content))


def inline(content: bytes, kind: str) -> str:
    """Encode a file of the MIME type `kind` as a `data:` address, for a page that needs no other file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def figure(facts: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Read a PNG figure {file, title} of `folder`; returns {title, address} for the macro `figure`."""
    return {"title": facts["title"], "address": inline((folder / facts["file"]).read_bytes(), "image/png")}


def numeric(cell: Cell) -> bool:
    """Return whether a cell is a figure, perhaps with an interval, and not words that begin with one."""
    if not isinstance(cell, str):
        return False
    return not cell or (cell[0] in "+-0123456789" and not re.search(r"[^\W\d_]{2}", cell))


def words(rows: Sequence[Sequence[Cell]]) -> list[int]:
    """Return the columns that hold other than figures: these stand left, figures right."""
    return [i for i in range(len(rows[0]) if rows else 0) if not all(numeric(row[i]) for row in rows)]


def unbroken(cell: str) -> str:
    """Keep an interval on one line."""
    return cell.replace(", ", ",\xa0")


ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters |= {"words": words, "unbroken": unbroken}
