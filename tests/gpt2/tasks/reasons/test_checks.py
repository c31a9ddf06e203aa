"""The longest run of words that a known text has too, against brute force."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.tasks.reasons.checks import KnownTexts

TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=8).map(" ".join), max_size=6)


def by_hand(text: str, known: list[str]) -> int:
    own, best = text.split(), 0
    for start in range(len(own)):
        for end in range(start + 1, len(own) + 1):
            run = own[start:end]
            if any(run == k[i : i + len(run)] for k in map(str.split, known) for i in range(len(k))):
                best = max(best, len(run))
    return best


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_it_is_what_comparing_everything_finds(texts, known):
    assert KnownTexts(known).longest(texts).tolist() == [by_hand(text, known) for text in texts]


def test_case_and_punctuation_are_no_difference_but_other_words_are():
    known = KnownTexts(["The plot, as such, is thin.", "A fine cast"])
    assert known.longest(["the PLOT as such", "thin a fine cast", "is thin a", "no", ""]).tolist() == [4, 3, 2, 0, 0]
