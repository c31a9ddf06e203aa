"""Markdown for people: tables, bullets, escapes and figures as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def harmless(text: str) -> str:
    """Return the text on one line, with table bars and HTML tags escaped."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def flat(text: str) -> str:
    """Return untrusted text on one line, with all Markdown syntax escaped."""
    return harmless(text).translate({ord(c): f"\\{c}" for c in "*_`[]#"})


def table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], escape: Callable[[str], str] = harmless, right: bool = False
) -> str:
    """Return a table; every cell is escaped. `right` aligns all columns but the first to the right."""
    cells = [[escape(number(c) if isinstance(c, (int, float)) else str(c)) for c in row] for row in (header, *rows)]
    first, *others = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([first, "|---" + ("|---:" if right else "|---") * (len(header) - 1) + "|", *others])


def bullets(texts: Sequence[str]) -> str:
    """Return a bulleted list of Markdown texts."""
    return "\n".join(f"* {text}" for text in texts)


def number(value: float | None) -> str:
    """Return a metric's value as text."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """Return a value as text, and its 95 % interval if there is one."""
    if value is None or interval is None:
        return number(value)
    digits = 3 if abs(value) < 100 else 1
    return f"{number(value)} [{interval[0]:,.{digits}f}, {interval[1]:,.{digits}f}]"
