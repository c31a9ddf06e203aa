"""Words in scripts without spaces: characters with their marks; everything else as it was."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import HashingVectorizer

from gpt2.data import near_duplicates
from gpt2.data.text import (
    AFTER,
    MARKS,
    UNSPACED,
    grams,
    has_characters,
    is_character,
    joined,
    length,
    mostly_characters,
    terms,
    words,
)

PARTS = {
    "我们在北京，iPhone手机很好！2023年": "我 们 在 北 京 iphone 手 机 很 好 2023 年",
    "きょうはガッコウ。": "き ょ う は ガ ッ コ ウ",
    "ประเทศไทยมีน้ำ ๒๕๖๓": "ป ระ เท ศ ไท ย มี น้ำ ๒๕๖๓",
    "ສະບາຍດີ": "ສະ ບາ ຍ ດີ",
    "ភ្នំពេញ": "ភ្នំ ពេ ញ",
    "မြန်မာ": "မြ န် မာ",
    "हिन्दी में किताब": "हिन्दी में किताब",
    "한국어 문장": "한국어 문장",
    "Don't stop, café No_5": "don t stop café no_5",
    "动作": "动 作",
}


@pytest.mark.parametrize("text", PARTS)
def test_a_character_with_its_marks_is_a_word(text):
    assert words(text) == PARTS[text].split()


SPACED = st.text(st.characters(codec="utf-8", max_codepoint=0x8FF), max_size=60)
ANY = st.text(st.sampled_from("我们很好，。ครดีน้ำกาがっこうコーabc é1_\n") | st.characters(codec="utf-8"), max_size=60)
ANALYZE = HashingVectorizer(ngram_range=(1, 2)).build_analyzer()


@settings(max_examples=200, deadline=None)
@given(SPACED)
def test_texts_in_scripts_with_spaces_are_read_as_before(text):
    assert words(text) == terms(text) == re.findall(r"\w+", text.lower())
    assert grams(text) == ANALYZE(text) and not has_characters(text) and not mostly_characters([text])
    assert near_duplicates.words(text) == re.findall(
        r"[^\W\d_]+", re.sub(r"https?://\S+|www\.\S+|@\w+|\brt\b|&\w+;", " ", text.lower())
    )


@settings(max_examples=500, deadline=None)
@given(ANY)
def test_words_lose_no_letter_and_characters_are_alone(text):
    said = words(text)
    assert "".join(re.findall(r"\w", "".join(said))) == "".join(re.findall(r"\w", text.lower()))
    if has_characters(text):
        assert all(is_character(word) or not re.search(f"[{UNSPACED}]", word) for word in said)
        again, alone = joined(said), any(word[0] in AFTER + MARKS for word in said)  # a vowel without its letter
        assert alone or words(again) == said or not has_characters(again)
    assert length(said) <= len(said) <= 2 * length(said) + 1


def test_a_stray_character_makes_no_other_script():
    """Emoji of a wrong encoding look like this."""
    for text in ("Super Bowl䋢: won", "guess 仫仫 Love ya", "_祟� http://t.co/A"):
        assert words(text) == re.findall(r"\w+", text.lower()) and grams(text) == ANALYZE(text)


def test_three_characters_are_as_long_as_two_words():
    assert length(words("一二三四五六")) == 4 and length(words("one two three")) == 3 and length([]) == 0


def test_near_duplicates_are_together():
    review = (
        "酒店的位置很好，离地铁站只有五分钟，房间干净，早餐丰富，服务员也很热情，"
        "下次来北京还会住在这里，推荐给带孩子的家庭，性价比相当高。"
    )
    edited = review.replace("五分钟", "六分钟").replace("丰富", "不错").replace("孩子", "老人")
    other = (
        "这本书的内容很空洞，作者的观点没有任何新意，翻译也不通顺，读了两章就放弃了，"
        "实在不值这个价钱，大家不要浪费时间和金钱去买它。"
    )
    found = near_duplicates.groups([review, other, edited, f"【转发】{review}"])
    assert found.tolist() == [0, 1, 0, 0]
    long = ["".join(np.random.default_rng(i).choice(list(review + other), 3000)) for i in range(2)]
    assert near_duplicates.groups(long).tolist() == [0, 1]
