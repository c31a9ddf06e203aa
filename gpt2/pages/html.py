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
    """Render the template `TEMPLATE.j2` and return the page. All strings in `content` are escaped."""
    return ENVIRONMENT.get_template(f"{template}.j2").render(content)


def fragment(template: str, **content: Any) -> Markup:
    """Render a part of a page as markup, which the page's template inserts without escaping."""
    return Markup(render(template, **content))


def inline(content: bytes, kind: str) -> str:
    """Return a file's bytes of the MIME type `kind` as a `data:` URL, for self-contained pages."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def figure(facts: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Read a PNG figure {file, title} from `folder` and return {title, address} for the macro `figure`."""
    return {"title": facts["title"], "address": inline((folder / facts["file"]).read_bytes(), "image/png")}


def numeric(cell: Cell) -> bool:
    """Return whether a cell is a number, perhaps with an interval, and not text that begins with a number."""
    if not isinstance(cell, str):
        return False
    return not cell or (cell[0] in "+-0123456789" and not re.search(r"[^\W\d_]{2}", cell))


def words(rows: Sequence[Sequence[Cell]]) -> list[int]:
    """Return the indices of the columns that hold text: these are left-aligned, numbers right-aligned."""
    return [i for i in range(len(rows[0]) if rows else 0) if not all(numeric(row[i]) for row in rows)]


def unbroken(cell: str) -> str:
    """Return a cell's text with the space inside an interval non-breaking."""
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
