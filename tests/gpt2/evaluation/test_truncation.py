"""Texts that do not fit into what a model reads are counted, and told where they are many."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation import unit_results
from gpt2.tasks.sentiment.dataset import encode
from tests.conftest import sentence


@pytest.fixture(scope="module")
def tokenizer():
    generator = random.Random(0)
    return Tokenizer.train((sentence(generator) for _ in range(200)), 300)


@settings(max_examples=40)
@given(st.lists(st.text(max_size=30), max_size=8), st.integers(8, 24))
def test_a_text_counts_as_cut_where_what_is_read_of_it_is_not_all(tokenizer, texts, context):
    read = [ids[:-1] for ids in encode(tokenizer, texts, context)]
    cut = sum(len(ids) < len(tokenizer.encode(text)) for ids, text in zip(read, texts, strict=True))
    counts = unit_results.counted(tokenizer, texts, context)
    assert {name: counts[name] for name in ("texts", "cut", "tokens")} == {
        "texts": len(texts), "cut": cut, "tokens": context
    }  # fmt: skip
    assert ("read" in counts) is ("per_character" in counts) and 0 <= counts.get("read", 0) <= 1


def test_how_much_was_read_is_told_where_a_character_takes_many_tokens(tokenizer):
    chinese, english = "房间不错服务也好" * 5, sentence(random.Random(1), 100)
    assert "read" not in unit_results.counted(tokenizer, [english], 64)
    found = unit_results.counted(tokenizer, [chinese, "好"], 61)
    assert found == {"texts": 2, "cut": 1, "tokens": 61, "per_character": 3.0, "read": 0.5}
    said = unit_results.sentence({"held-out texts": found})
    assert "and was cut there, since a character takes 3.0 tokens: 50% of it was read" in said
    assert "start from a model pretrained on text of this language (corpus.sources)" in said
    [warning] = unit_results.warnings({"task": "sentiment", "cut": {"held-out texts": found}})
    assert said in warning


def counts(texts, cut, tokens=128):
    return {"texts": texts, "cut": cut, "tokens": tokens}


@pytest.mark.parametrize(
    ("training", "held_out", "told"),
    [
        (counts(90, 0), counts(10, 0), "All 90 training texts fit into 128 tokens; all 10 held-out texts fit into"),
        (counts(2000, 1), counts(10, 0), "1 of 2,000 training texts does not fit into 128 tokens and was cut there"),
        (
            counts(90, 0),
            counts(2000, 120, 64),
            "120 of 2,000 held-out texts (6.0%) do not fit into 64 tokens and were cut",
        ),
    ],
)
def test_what_a_report_says(training, held_out, told):
    assert told in unit_results.sentence({"training texts": training, "held-out texts": held_out})


def test_a_log_warns_of_more_than_a_twentieth():
    report = {"task": "sentiment", "cut": {"training texts": counts(100, 5), "held-out texts": counts(100, 0)}}
    assert unit_results.warnings(report) == [] == unit_results.warnings({"task": "base"})
    report["cut"]["held-out texts"] = counts(100, 6)
    [told] = unit_results.warnings(report)
    assert told.startswith("sentiment: 5 of 100 training texts (5.0%)") and "longer context" in told
