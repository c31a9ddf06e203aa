"""What a sentiment model must do whatever its test set holds (`gpt2.behaviour`), from English templates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from gpt2.behaviour import DIRECTION, INVARIANCE, LINK, MINIMUM, SLACK, Answer, Failed, Test, Texts, changed, of_texts

THINGS = ("flight", "crew", "food", "service", "phone", "app", "film", "hotel", "price", "show")
GOOD = ("good", "great", "excellent", "amazing", "wonderful")
BAD = ("bad", "terrible", "awful", "horrible", "poor")
NAMES = ("Anna", "Peter", "Fatima", "Wei", "Carlos", "Aisha")
PLACES = ("Paris", "Cairo", "Mumbai", "Chicago", "Nairobi", "Tokyo")
HANDLE = "@peter_k "
STRONGER = ("very", "really", "absolutely")


def suite(predict: Answer, labels: Sequence[str]) -> list[Test]:
    """Of a model by its probabilities of texts; none where no label is positive and none negative."""
    named = [next((i for i, label in enumerate(labels) if label.lower().startswith(n)), None) for n in ("neg", "pos")]
    negative, positive = named
    if negative is None or positive is None:
        return []
    return of_texts(
        templates(negative, positive), predict, lambda row: f"{labels[int(row.argmax())]} ({row.max():.0%})"
    )


def templates(negative: int, positive: int) -> list[Texts]:
    """What is asked of the indices of two labels."""
    good = [f"The {thing} was {word}." for thing, word in product(THINGS, GOOD)]
    bad = [f"The {thing} was {word}." for thing, word in product(THINGS, BAD)]
    plain = [*good, *bad]
    changes = {
        "another name changes nothing": [
            (f"{one} says: {text}", f"{other} says: {text}") for text, one, other in beside(plain, NAMES)
        ],
        "another place changes nothing": [
            (f"{text[:-1]} in {one}.", f"{text[:-1]} in {other}.") for text, one, other in beside(plain, PLACES)
        ],
        "a handle before it changes nothing": [(text, HANDLE + text) for text in plain],
        "a link changes nothing": [(text, text + LINK) for text in plain],
        "lower case changes nothing": [(text, text.lower()) for text in plain],
        "upper case changes nothing": [(text, text.upper()) for text in plain],
    }
    found = [
        simple("a good word is positive", good, positive),
        simple("a bad word is negative", bad, negative),
        simple("love is positive", [f"I love the {thing}" for thing in THINGS], positive),
        simple("hate is negative", [f"I hate the {thing}" for thing in THINGS], negative),
        simple(
            "a not good thing is negative", [f"The {t} was not good, I want my money back." for t in THINGS], negative
        ),
    ]
    for name, pairs in changes.items():
        old, new = zip(*pairs, strict=True)
        found.append(Texts(INVARIANCE, name, new, old, changed))
    for word, texts, label in (("good", good, positive), ("bad", bad, negative)):
        negated = [text.replace(" was ", " was not ") for text in texts]
        stronger = [t.replace(" was ", f" was {STRONGER[i % len(STRONGER)]} ") for i, t in enumerate(texts)]
        found += [
            Texts(DIRECTION, f"'not' before a {word} word makes it less so", negated, texts, no_less(label)),
            Texts(DIRECTION, f"'very' before a {word} word does not make it less so", stronger, texts, less(label)),
        ]
    return found


def simple(name: str, texts: Sequence[str], label: int) -> Texts:
    """Texts that must get the label."""
    return Texts(MINIMUM, name, texts, None, lambda after, _: after.argmax(1) != label)


def no_less(label: int) -> Failed:
    """The label is as likely as before, or more."""
    return lambda after, before: after[:, label] >= before[:, label]


def less(label: int) -> Failed:
    """The label is less likely than before, beyond the slack."""
    return lambda after, before: after[:, label] < before[:, label] - SLACK


def beside(texts: Sequence[str], words: Sequence[str]) -> list[tuple[str, str, str]]:
    """Each text with two of the words, in turn."""
    return [(text, words[i % len(words)], words[(i + 1) % len(words)]) for i, text in enumerate(texts)]
