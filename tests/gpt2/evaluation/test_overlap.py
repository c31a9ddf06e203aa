"""What the training text has of an evaluation set: planted copies, brute force, and nothing by chance."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.near_duplicates import words
from gpt2.evaluation import contamination
from gpt2.evaluation.contamination import FEW, GRAM, LEAST, NEAR, WORDS, Index

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "ia", "o") for c in ("ck", "l", "m", "nd", "x")]
NOISE = re.compile(r"https?://\S+|www\.\S+|@\w+|\brt\b|&\w+;|[^\w\s]|[\d_]", re.IGNORECASE)


def texts(generator, count, least, most):
    """Made-up texts, words as frequent as in language (Zipf)."""
    odds = 1 / np.arange(1, len(VOCABULARY) + 1)
    lengths = generator.integers(least, most + 1, count)
    return [" ".join(generator.choice(VOCABULARY, n, p=odds / odds.sum())) for n in lengths]


def shuffled(row, generator):
    """The words; one in twenty is lost or changes places with the next."""
    row = list(row)
    for _ in range(max(1, round(len(row) / 20))):
        i = int(generator.integers(len(row) - 1))
        if generator.random() < 0.5:
            del row[i]
        else:
            row[i], row[i + 1] = row[i + 1], row[i]
    return row


def edited(text, generator):
    """One word in twenty is lost or changes places with the next; case, links, names and punctuation are others."""
    row = shuffled(text.split(), generator)
    told = [w.upper() if generator.random() < 0.2 else w + generator.choice(["", "", ",", "!!", " &amp;"]) for w in row]
    return f"RT @{VOCABULARY[generator.integers(99)]}: {' '.join(told)} http://t.co/{generator.integers(1e9)} 2015"


def found(index, training):
    return {hit.unit for start in range(0, len(training), 97) for hit in index.search(training[start : start + 97])}


@pytest.mark.parametrize("lengths", [(8, 30), (20, 60), (100, 300)])
def test_planted_copies_are_found(lengths):
    generator = np.random.default_rng(lengths[0])
    held_out = texts(generator, 400, *lengths)
    index, unrelated = Index(held_out), texts(generator, 1500, *lengths)
    assert not found(index, unrelated)
    exact = [held_out[i] for i in range(100)]
    inside = [f"{a} {held_out[i]} {b}" for i, a, b in zip(range(100, 200), unrelated, unrelated[500:], strict=False)]
    light = [edited(held_out[i], generator) for i in range(200, 300)]
    seen = found(index, list(generator.permutation([*unrelated, *exact, *inside, *light])))
    assert seen >= set(range(200))  # exact: 100 of 100, alone or within another text
    lightly = seen & set(range(200, 300))
    print(f"{len(lightly)} of 100 lightly edited, of {lengths} words")
    assert len(lightly) >= 95
    assert seen <= set(range(300))  # none that was not planted


def letters(first, last):
    return [chr(c) for c in range(ord(first), ord(last) + 1)]


THAI = [f"{c}{v}" for c in letters("ก", "ฮ") for v in ("า", "ี", "้", "ุ", "")]
KHMER = [f"{c}{v}" for c in letters("ក", "អ") for v in ("ា", "ី", "េ", "ុ", "")]
BURMESE = [f"{c}{v}" for c in letters("က", "အ") for v in ("ာ", "ီ", "ေ", "ု", "")]
LAO = [f"{c}{v}" for c in "ກຂຄງຈສຊຍດຕຖທນບປຜຝພຟມຢຣລວຫອຮ" for v in ("າ", "ີ", "້", "ຸ", "")]
UNSPACED = {
    "Chinese": (letters("一", "俿"), 2),
    "Japanese": ([*letters("あ", "ん"), *letters("ア", "ン"), *letters("一", "万")], 3),
    "Thai": (THAI, 2), "Lao": (LAO, 2), "Khmer": (KHMER, 2), "Burmese": (BURMESE, 2),
}  # fmt: skip
"""Of each script: characters, and how many make a word."""


def unspaced(script, generator, count, least, most):
    """Made-up texts of words as frequent as in language (Zipf), each as a list of words."""
    characters, size = UNSPACED[script]
    vocabulary = ["".join(generator.choice(characters, generator.integers(1, size + 1))) for _ in range(2000)]
    odds = 1 / np.arange(1, len(vocabulary) + 1)
    lengths = generator.integers(least, most + 1, count)
    return [generator.choice(vocabulary, n, p=odds / odds.sum()).tolist() for n in lengths]


def told(row, generator):
    """Words without spaces, with punctuation here and there."""
    return "".join(word + ("，" if generator.random() < 0.1 else "") for word in row)


def edited_unspaced(row, generator):
    row = shuffled(row, generator)
    return f"RT @name: 「{told(row, generator)}」 http://t.co/{generator.integers(1e9)} 2015"


@pytest.mark.parametrize("lengths", [(12, 30), (20, 60)])
@pytest.mark.parametrize("script", UNSPACED)
def test_planted_copies_are_found_in_scripts_without_spaces(script, lengths):
    generator = np.random.default_rng(lengths[0])
    rows = unspaced(script, generator, 800, *lengths)
    held_out, unrelated = [told(row, generator) for row in rows[:400]], [told(row, generator) for row in rows[400:]]
    index = Index(held_out)
    assert not found(index, unrelated)
    exact = [held_out[i] for i in range(100)]
    inside = [f"{a}{held_out[i]}{b}" for i, a, b in zip(range(100, 200), unrelated, unrelated[200:], strict=False)]
    light = [edited_unspaced(rows[i], generator) for i in range(200, 300)]
    seen = found(index, list(generator.permutation([*unrelated, *exact, *inside, *light])))
    assert seen >= set(range(200))  # exact: 100 of 100, alone or within another text
    assert len(seen & set(range(200, 300))) >= 95 and seen <= set(range(300))


def test_a_review_inside_a_longer_document_is_found_and_told_without_spaces():
    review = (
        "酒店的位置很好，离地铁站只有五分钟，房间干净，早餐丰富，服务员也很热情，"
        "下次来北京还会住在这里，推荐给带孩子的家庭，性价比相当高。"
    )
    japanese = "駅から近くて便利なホテルでした。部屋は少し狭いですが、朝食がとても美味しかったです。"
    index = Index([review, japanese, "今天天气很好我们去公园", "ราคาไม่แพงเลยครับ"])
    hit, *also = index.search([f"昨天我们看到一条评论，说{review}大家觉得怎么样？"])
    assert {h.unit for h in also} <= {0} and (hit.unit, hit.how, hit.found) == (
        0,
        GRAM,
        "酒店的位置很好离地铁站只有五分钟房间干净",
    )
    assert {h.unit for h in index.search([f"このレビューを読みました。{japanese}本当ですか。"])} == {1}
    assert not index.search(
        ["他说今天天气很好我们去公园走走吧", "酒店的位置很好，离地铁站也近"]
    )  # phrases that many use
    facts = contamination.summary([0], [review], [(contamination.CORPUS, hit)], "text", 1)
    assert "it is 20 characters in a row (of 12 to 19, all)" in contamination.as_sentence(facts)


def test_unrelated_texts_are_not_found():
    """Of 3,000 short texts, in 6,000 of the same few frequent words, fewer than 1 in 1,000 is found."""
    generator = np.random.default_rng(0)
    index, training = Index(texts(generator, 3000, 6, 30)), texts(generator, 6000, 6, 30)
    assert len(found(index, training)) <= 3


ROW = st.lists(st.sampled_from("ab"), max_size=40).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=6), st.lists(ROW, max_size=6))
def test_rows_of_words_are_those_of_brute_force(held_out, training):
    expected = set()
    for unit, text in enumerate(held_out):
        row = text.split()
        n = min(WORDS, len(row))
        windows = {tuple(row[i : i + n]) for i in range(len(row) - n + 1)}
        for other in (t.split() for t in training):
            if n >= LEAST and windows & {tuple(other[i : i + n]) for i in range(len(other) - n + 1)}:
                expected.add(unit)
    hits = [hit for hit in Index(held_out).search(training) if hit.how == GRAM]
    assert {hit.unit for hit in hits} == expected and len(hits) == len(expected)
    for hit in hits:
        assert hit.found in held_out[hit.unit] and any(hit.found in text for text in training)


def test_short_texts_are_found_as_a_whole_only():
    index = Index(["Thank you!", "great service and a lovely crew today", "", "@only https://this.org 42"])
    assert not index.search(["thank you so much for the very great service and a lovely crew"])
    hits = index.search(
        ["we say thank you", "@you thank YOU http://t.co/1", "Great service, and a lovely crew! today", ""]
    )
    assert [(hit.unit, hit.how) for hit in hits] == [(0, NEAR), (1, NEAR)]
    assert hits[0].found == "@you thank YOU http://t.co/1" and FEW > 13


LETTERS = st.characters(max_codepoint=0x8FF)  # beyond, vowels are marks: tests/gpt2/data/test_unspaced.py


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("abrtRTé _1@#&;:/.'\n\u0130") | LETTERS, max_size=40), st.booleans())
def test_words_are_what_is_left_without_noise(text, link):
    text = f"{text}http://t.co/x rt" if link else text
    assert words(text) == NOISE.sub(" ", text.lower()).split()
