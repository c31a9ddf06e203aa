"""The words of a text in any script, whether a text is unfinished, and its topics: @handles, #hashtags, $cashtags.

Chinese, Japanese, Thai, Lao, Khmer and Burmese are written without spaces between words (Unicode Standard Annex 29,
section 4). There each character, with the marks that belong to it, counts as a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, pairwise
from unicodedata import category

PLACES = chain(range(0x900, 0x1DC0), range(0x3000, 0x3100), range(0xA800, 0xAC00))
MARKS = "".join(c for c in map(chr, PLACES) if category(c).startswith("M"))
"""Vowels and tones of the scripts of South and South East Asia: part of the letter before, but no letters to `re`."""
UNSPACED = (
    "\u0e01-\u0e4e\u0e81-\u0ecf\u0edc-\u0edf"  # Thai, Lao
    "\u1000-\u103f\u1050-\u108f\u109a-\u109d\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17d3\u17dc-\u17dd\u1950-\u19cf\u1a20-\u1a7f\uaa80-\uaadf"  # Khmer, Tai
    "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"  # kana
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3105-\u312f\u31a0-\u31bf\u3400-\u4dbf"
    "\u4e00-\ua48c\uf900-\ufaff\U00016fe0-\U00018d8f\U0001b170-\U0001b2ff\U00020000-\U0003ffff"  # Chinese characters
)
BEFORE, AFTER = "เ-ไເ-ໄ", "ะาำๅະາຳﾞﾟ"
CHARACTER = re.compile(rf"[{BEFORE}]?[{UNSPACED}](?:[\u1039\u17d2]\w|[{AFTER}{MARKS}])*")
"""A character with its marks: a Chinese character, a kana, or a consonant with its vowels."""
RUN = re.compile(rf"[{UNSPACED}]{{3}}|\A(?=[\W{UNSPACED}]*\Z)(?s:.*)[{UNSPACED}]")
"""Three in a row, or nothing else. Fewer among other letters are no text: broken bytes, as of emoji, look like that."""
PLAIN = re.compile(r"\w+")
ANY = re.compile("[\u0900-\u1dbf\u2e80-\ufaff\uff66-\uff9f\U00016fe0-\U0001b2ff\U00020000-\U0003ffff]")
"""Where `UNSPACED` and `MARKS` lie: few ranges, which are searched for quickly."""
WORD = re.compile(rf"\w+(?:[{MARKS}]+\w*)*")
BETWEEN = re.compile(rf"(?<=[{UNSPACED}{AFTER}{MARKS}]) (?=[{UNSPACED}])")
"""A space that `joined` leaves out."""


def spaced(text: str) -> str:
    """Return the text with spaces around each character of a script without spaces; other texts as they are."""
    return CHARACTER.sub(r" \g<0> ", text) if has_characters(text) else text


def is_plain(text: str) -> bool:
    """Return whether `re` finds the words of a text without help, as of most texts with spaces."""
    return text.isascii() or ANY.search(text) is None


def has_characters(text: str) -> bool:
    """Return whether a text is in a script without spaces, or has a part in one."""
    return not is_plain(text) and RUN.search(text) is not None


def words(text: str) -> list[str]:
    """Return the words of a text, lower-cased; each character of a script without spaces is one."""
    text = text.lower()
    return PLAIN.findall(text) if is_plain(text) else WORD.findall(spaced(text))


def is_character(word: str) -> bool:
    """Return whether a word is a character of a script without spaces."""
    return CHARACTER.match(word) is not None


def length(said: Sequence[str]) -> int:
    """Return how many words these are; three characters of a script without spaces are as long as two words."""
    return len(said) - round(sum(map(is_character, said)) / 3)


def mostly_characters(texts: Sequence[str]) -> bool:
    """Return whether most of the texts have characters of scripts without spaces."""
    return 2 * sum(has_characters(text) for text in texts) > len(texts)


def joined(said: Sequence[str]) -> str:
    """Return words as a text, without spaces between two characters of a script without spaces."""
    text = " ".join(said)
    return text if text.isascii() else BETWEEN.sub("", text)


def grams(text: str) -> list[str]:
    """Return the words of two letters or more and their pairs, as scikit-learn's `ngram_range=(1, 2)` counts them.

    In scripts without spaces they are the characters, their pairs and their triples.
    """
    if not has_characters(text):
        said = [word for word in words(text) if len(word) > 1]
        return [*said, *map(" ".join, pairwise(said))]
    said = [word for word in words(text) if len(word) > 1 or is_character(word)]
    triples = [three for three in zip(said, said[1:], said[2:], strict=False) if all(map(is_character, three))]
    return [*said, *map(joined, [*pairwise(said), *triples])]


def terms(text: str) -> list[str]:
    """Return the terms to search a text by: its words, and the pairs of characters in scripts without spaces."""
    said = words(text)
    if not has_characters(text):
        return said
    return [*said, *(joined(two) for two in pairwise(said) if all(map(is_character, two)))]


def unfinished(said: Sequence[str], ended: bool, least: int) -> str:
    """Return the reason why words are not a finished text of at least `least` words, "" if they are."""
    if not said:
        return "it is empty"
    if not ended:
        return "it has no end"
    return "it is too short" if length(said) < least else ""


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
