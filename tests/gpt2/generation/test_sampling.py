"""What is cut off and penalised, against `transformers`' processors."""

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from gpt2.generation import generate
from gpt2.generation.generate import Sampler, Sampling, nucleus, penalised

CPU = torch.device("cpu")


def logits(rows=4, size=2000, scale=3.0):
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(1)) * scale


@pytest.mark.parametrize("penalty", [0.5, 1.3, 10.0])
def test_repetition_penalty_is_transformers(penalty):
    text = torch.randint(2000, (4, 50), generator=torch.Generator().manual_seed(2))
    text[:, 10:20] = text[:, :10]  # twice is the same as once
    expected = RepetitionPenaltyLogitsProcessor(penalty)(text, logits())
    assert torch.equal(penalised(logits(), text, penalty), expected) and not torch.equal(expected, logits())


def test_repetition_penalty_sees_prompts_and_what_was_written():
    """Row by row as `transformers`, for prompts of unequal length."""
    prompts = [[3], [1, 2, 3, 4], [7, 7]]
    sampler, texts = Sampler(prompts, 30, Sampling(temperature=0, repetition_penalty=2.5), CPU), [*map(list, prompts)]
    for step in range(30):
        scores = torch.randn(3, 12, generator=torch.Generator().manual_seed(step))
        tokens = sampler(scores).tolist()
        for i, text in enumerate(texts):
            expected = RepetitionPenaltyLogitsProcessor(2.5)(torch.tensor([text]), scores[i : i + 1])
            assert tokens[i] == int(expected.argmax())
            text.append(tokens[i])


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.3), (0, 0.9), (0, 0.999), (7, 1.0), (50, 0.8), (1999, 0.95)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_draws_are_from_what_transformers_leaves(top_k, top_p, scale):
    """Every quantile of each row, at flat and peaked distributions."""
    scores, n = logits(scale=scale).double(), 100  # fp32 has ties
    left = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    left = TopPLogitsWarper(top_p)(None, left).softmax(-1).double()
    sampler = Sampler([[0]] * 4, 1, Sampling(top_k=top_k, top_p=top_p), CPU)
    order = left.sort(dim=-1, descending=True, stable=True).indices
    for quantile in torch.linspace(0.0005, 0.9995, n, dtype=torch.float64):
        drawn = sampler.draw(scores, quantile.expand(4))
        assert (left.gather(1, drawn[:, None]) > 0).all()
        if top_k or top_p < 1:  # the likeliest first
            places = (order == drawn[:, None]).double().argmax(-1)
            before = torch.stack([left[i, order[i, :p]].sum() for i, p in enumerate(places)])
            here = left.gather(1, drawn[:, None])[:, 0]
            assert (before - 1e-4 <= quantile).all() and (quantile <= before + here + 1e-4).all()


def test_a_row_of_a_nucleus_does_not_depend_on_the_others(monkeypatch):
    """Rows that need 4, 16 or all candidates."""
    monkeypatch.setattr(generate, "CANDIDATES", (4, 16))
    rows = torch.stack([logits(1, 300, scale)[0] for scale in (0.1, 2.0, 20.0, 4.0)]).softmax(-1)
    draws = torch.tensor([0.99, 0.5, 0.3, 0.999], dtype=torch.float64)
    together = nucleus(rows, 0.9, draws)
    assert together.tolist() == [int(nucleus(rows[i : i + 1], 0.9, draws[i : i + 1])) for i in range(4)]


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("inf"), float("nan")])
def test_refused(penalty):
    with pytest.raises(ValueError, match=r"repetition_penalty=.*; give a positive number, 1 for none"):
        Sampling(repetition_penalty=penalty)
