"""Whether a written reply may be shown."""

from __future__ import annotations

from collections.abc import Sequence

from gpt2.search import words

COPIED = 5
"""So many words in a row that only another answer has are copied from it."""
SHORT = 4
"""A reply of fewer words says nothing, unless the answer has no more."""


def withheld(reply: str, ended: bool, question: str, answer: str, answers: Sequence[str]) -> str:
    """Why a reply is not shown, "" where it is: it is empty or short, has no end, says what only other answers
    say, or says less than half with the words of the question and of the answer that it was written from."""
    said, own = words(reply), words(answer)
    if reason := unfinished(said, ended, min(SHORT, len(own))):
        return reason
    ours = {*own, *words(question)}
    others = runs(said) - runs(own) - runs(words(question))
    if others and any(others & runs(words(other)) for other in answers if other != answer):
        return "it copies another answer"
    return "" if sum(w in ours for w in said) >= len(said) / 2 else "it strays from the answer"


def unfinished(said: Sequence[str], ended: bool, least: int) -> str:
    """Why words are no whole text of so many words at least, "" where they are."""
    if not said:
        return "it is empty"
    if not ended:
        return "it has no end"
    return "it is too short" if len(said) < least else ""


def runs(text: Sequence[str]) -> set[tuple[str, ...]]:
    """All runs of `COPIED` words; of a shorter text the whole."""
    size = min(COPIED, len(text))
    return {tuple(text[i : i + size]) for i in range(len(text) - size + 1)} if size else set()
