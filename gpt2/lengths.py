"""Texts that are longer than what a model reads of them: counted, so that nobody wonders what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2.tokenizer import Tokenizer

MANY = 0.05
"""A share of cut texts above which a run's log warns."""


def longer(tokenizer: Tokenizer, texts: Sequence[str], room: int) -> list[bool]:
    """Of each text whether it has more than `room` tokens. A token is a byte or more: short texts need no encoding."""
    asked = [i for i, text in enumerate(texts) if len(text.encode("utf-8", "surrogatepass")) > room]
    found = [False] * len(texts)
    for i, ids in zip(asked, tokenizer.encode_batch([texts[i] for i in asked]), strict=True):
        found[i] = len(ids) > room
    return found


def counted(tokenizer: Tokenizer, texts: Sequence[str], context: int) -> dict[str, int]:
    """`texts`, and how many of these are `cut`, as with an end-of-text they do not fit into `tokens`, the context."""
    return {"texts": len(texts), "cut": sum(longer(tokenizer, texts, context - 1)), "tokens": context}


def sentence(cut: Mapping[str, Mapping[str, int]]) -> str:
    """What a report says of `counted` by what they are, such as "held-out texts"."""
    told = []
    for name, counts in cut.items():
        texts, some, context = counts["texts"], counts["cut"], f"{counts['tokens']:,} tokens"
        fit = f"do{'es' * (some == 1)} not fit into {context} and {'was' if some == 1 else 'were'} cut there"
        share = f" ({some / texts:.1%})" if 1000 * some >= texts > 0 else ""
        cut_off = f"{some:,} of {texts:,} {name}{share} {fit}"
        told.append(cut_off if some else f"all {texts:,} {name} fit into {context}")
    whole = "; ".join(told)
    return f"{whole[0].upper()}{whole[1:]}."


def warnings(report: Mapping[str, Any]) -> list[str]:
    """Of a written report with `cut`: what a run's log must warn of."""
    cut = report.get("cut", {})
    if not any(counts["cut"] > MANY * counts["texts"] for counts in cut.values()):
        return []
    return [
        f"{report['task']}: {sentence(cut)} A longer context (train.context, model.n_positions) reads more of them."
    ]
