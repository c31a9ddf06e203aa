"""The words of a text, whether a text is unfinished, and its topics: @handles, #hashtags, $cashtags."""

from __future__ import annotations

import re
from collections.abc import Sequence


def unfinished(said: Sequence[str], ended: bool, least: int) -> str:
    """Return the reason why words are not a finished text of at least `least` words, "" if they are."""
    if not said:
        return "it is empty"
    if not ended:
        return "it has no end"
    return "it is too short" if len(said) < least else ""


def words(text: str) -> list[str]:
    """Return the words of a text, lower-cased."""
    return re.findall(r"\w+", text.lower())


PATTERNS = {
    "handles": ("@", re.compile(r"(?<![\w@#$/.])@(\w{2,50})")),
    "hashtags": ("#", re.compile(r"(?<![\w@#$/&])#(\w*[^\W\d_]\w*)")),
    "cashtags": ("$", re.compile(r"(?<![\w@#$])\$([A-Za-z]{1,6})(?!\w)")),
}
"""Kinds of topics: the sign before a name, and the pattern that finds it. `$5` and `me@home.org` hold none."""


def topics_of(text: str, kinds: Sequence[str] = tuple(PATTERNS)) -> list[str]:
    """Return the topics that a text names, lower-cased, each once, in order."""
    signs = ((sign, match) for sign, pattern in (PATTERNS[kind] for kind in kinds) for match in pattern.finditer(text))
    topics = sorted((match.start(), sign + match[1].lower()) for sign, match in signs)
    return list(dict.fromkeys(topic for _, topic in topics))
