"""Generation with a cache against generation without one."""

import pytest
import torch

from gpt2.generation.generate import generate
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2

END = 299
PROMPTS = [[5, 17, 250], [END], list(range(40, 51)), [7, 7, 7, 7, 8, 9]]


@pytest.fixture(scope="module")
def model():
    # Wide initial weights: a peaked, varied distribution instead of a nearly uniform one.
    config = ModelConfig(vocab_size=300, n_positions=32, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    return GPT2(config, seed=3).eval()


@torch.no_grad()
def greedy(model, prompt, count):
    """Without a cache: the whole text is read again for each token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model.logits(model.hidden(torch.tensor([ids]))[0, -1]).argmax()))
    return ids[len(prompt) :]


def test_cached_greedy_equals_uncached(model):
    for prompt in PROMPTS:
        expected = greedy(model, prompt, 21)
        assert len(set(expected)) > 2
        assert generate(model, END, [prompt], 21, temperature=0, stop_at_eot=False) == [expected]


def test_unequal_batch_equals_alone(model):
    batch = generate(model, END, PROMPTS, 21, temperature=0, stop_at_eot=False)
    assert batch == [greedy(model, prompt, 21) for prompt in PROMPTS]


@pytest.mark.parametrize(
    "cut",
    [
        {},
        {"top_k": 5},
        {"top_p": 0.7},
        {"temperature": 1.7, "top_k": 20, "top_p": 0.9},
        {"repetition_penalty": 1.5, "top_p": 0.9},
    ],
)
def test_sampled_batch_equals_alone(model, cut):
    batch = generate(model, END, PROMPTS, 15, seed=11, **cut)
    assert batch == [generate(model, END, [p], 15, seed=11 + i, **cut)[0] for i, p in enumerate(PROMPTS)]
    assert batch == generate(model, END, PROMPTS, 15, seed=11, **cut)
    assert batch != generate(model, END, PROMPTS, 15, seed=99, **cut)


def test_the_same_prompt_twice_is_continued_in_two_ways(model):
    first, second = generate(model, END, [[5], [5]], 20, temperature=2.0, stop_at_eot=False)
    assert first != second


def test_samples_are_rows_of_their_own(model):
    found = generate(model, END, PROMPTS, 10, seed=3, samples=2)
    assert found == generate(model, END, [p for p in PROMPTS for _ in range(2)], 10, seed=3)
    assert found[0] != found[1]


def test_more_tokens_begin_as_fewer(model):
    few = generate(model, END, PROMPTS, 5, seed=3, stop_at_eot=False)
    assert few == [row[:5] for row in generate(model, END, PROMPTS, 18, seed=3, stop_at_eot=False)]


def test_left_out_beginnings_are_told(model):
    long = [*range(100, 140)]
    with pytest.warns(UserWarning, match="prompt 1: only the last 22 tokens are read"):
        found = generate(model, END, [[1], long], 10, temperature=0, truncate=True)
    assert found == generate(model, END, [[1], long[-22:]], 10, temperature=0)


def test_top_k_one_and_tiny_top_p_are_greedy(model):
    expected = [greedy(model, p, 10) for p in PROMPTS]
    assert generate(model, END, PROMPTS, 10, top_k=1, stop_at_eot=False) == expected
    assert generate(model, END, PROMPTS, 10, top_p=1e-6, stop_at_eot=False) == expected


def test_samples_follow_the_distribution(model):
    prompt, n = [5, 17, 250], 4000
    with torch.no_grad():
        p = model.logits(model.hidden(torch.tensor([prompt]))[0, -1]).softmax(-1)
    drawn = torch.tensor(generate(model, END, [prompt] * n, 1, stop_at_eot=False))[:, 0]
    share = torch.bincount(drawn, minlength=300) / n
    assert (share - p).abs().max() < 5 * (0.25 / n) ** 0.5


def test_stops_at_end_of_text(model):
    """Whatever token comes third, called end-of-text, ends the row before it, and no other row."""
    expected = [greedy(model, p, 12) for p in PROMPTS]
    end = expected[0][2]
    cut = [row[: row.index(end)] if end in row else row for row in expected]
    assert generate(model, end, PROMPTS, 12, temperature=0) == cut
    assert len(cut[0]) <= 2


def test_dropout_is_off_and_the_mode_kept():
    config = ModelConfig(vocab_size=300, n_positions=16, n_embd=16, n_layer=1, n_head=2, dropout=0.5)
    model = GPT2(config, seed=0).train()
    assert generate(model, END, [[1, 2]], 8, temperature=0) == generate(model.eval(), END, [[1, 2]], 8, temperature=0)
    generate(model.train(), END, [[1]], 1)
    assert model.training


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([], {}, "no prompts"),
        ([[1], []], {}, "prompt 1 is empty; begin with the end-of-text token"),
        ([[1, 300]], {}, "prompt 0 has 300 at 1, where ids are whole numbers from 0 to 299"),
        ([[-1]], {}, "prompt 0 has -1 at 0"),
        ([[1.5]], {}, "prompt 0 has 1.5 at 0"),
        ([[1]], {"top_k": 2.5}, "a whole top_k"),
        ([[1] * 30], {"max_tokens": 3}, "30 tokens, with max_tokens=3 .* 32 positions; .*lower max_tokens to 2"),
        ([[1] * 40], {}, "40 tokens.*shorten the prompt$"),
        ([[1]], {"max_tokens": 0}, "max_tokens=0"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0"),
        ([[1]], {"temperature": float("nan")}, "temperature=nan"),
        ([[1]], {"top_k": -1}, "top_k=-1"),
        ([[1]], {"top_p": 0.0}, "top_p=0.0"),
        ([[1]], {"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ([[1]], {"samples": 0}, "samples=0"),
        ([[1] * 40], {"max_tokens": 32, "truncate": True}, "40 tokens"),
    ],
)
def test_refused(model, prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(model, END, prompts, **{"max_tokens": 2, **settings})


def test_fills_the_positions_exactly(model):
    assert len(generate(model, END, [[1] * 30], 2, stop_at_eot=False)[0]) == 2
