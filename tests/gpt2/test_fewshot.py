"""Few-shot labels against likelihoods computed one text and one label at a time, without a cache."""

import warnings

import numpy as np
import pytest
import torch

from gpt2.data.tokenizer import Tokenizer
from gpt2.fewshot import CONTENT_FREE, TEMPLATE, FewShot, choose
from gpt2.model import adapters
from gpt2.model.config import AdaptationConfig, ModelConfig
from gpt2.model.transformer import GPT2

LABELS = ["bad", "so so", "wonderful"]  # of unequal numbers of tokens
EXAMPLES = [("a dull film", 0), ("a lovely and warm film ", 2), ("it is a film", 1), ("very bad", 0)]
TEXTS = ["the plot is dull", "it was such a lovely film that I saw it again", "film", "a film\nof two lines"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train((f"the film number {i} of {i * i} is so good, dull and bad\nText:" for i in range(300)), 320)


def make(**changes):
    config = ModelConfig(n_layer=2, n_head=2, n_embd=32, n_positions=256, vocab_size=320, initializer_range=0.2)
    return GPT2(config.model_copy(update=changes), seed=0).eval()


@torch.no_grad()
def likelihoods(model, tokenizer, examples, texts):
    """log p(label | prompt), each prompt encoded and read whole."""
    prompt = "".join(f"{TEMPLATE.replace('{text}', t.strip())} {LABELS[label]}\n" for t, label in examples)
    out = np.zeros((len(texts), len(LABELS)))
    for i, text in enumerate(texts):
        asked = [tokenizer.end_of_text, *tokenizer.encode(prompt + TEMPLATE.replace("{text}", text))]
        for j, label in enumerate(LABELS):
            ids = [tokenizer.end_of_text, *tokenizer.encode(f"{prompt}{TEMPLATE.replace('{text}', text)} {label}")]
            assert ids[: len(asked)] == asked and len(ids) > len(asked)
            scores = model.logits(model.hidden(torch.tensor([ids]))[0]).log_softmax(-1)
            out[i, j] = sum(float(scores[t - 1, ids[t]]) for t in range(len(asked), len(ids)))
    return out


def shares(scores):
    return torch.from_numpy(scores).softmax(-1).numpy()


@pytest.mark.parametrize("k", [0, 1, 4])
@pytest.mark.parametrize("changes", [{}, {"positions": "rotary", "value_residual": True}])
def test_equals_one_at_a_time(tokenizer, k, changes):
    model = make(**changes)
    assert len({len(tokenizer.encode(f" {label}")) for label in LABELS}) == 3
    found = FewShot(model, tokenizer, LABELS, EXAMPLES[:k]).label(TEXTS, batch_size=3)
    expected = likelihoods(model, tokenizer, EXAMPLES[:k], TEXTS)
    assert np.ptp(expected, axis=0).min() > 0.01  # the texts matter
    np.testing.assert_allclose(found.probabilities, shares(expected), 1e-4)
    assert found.shown.tolist() == [k] * 4


def test_with_a_tuned_prefix(tokenizer):
    model = make()
    adapters.add(model, AdaptationConfig(kind="prefix", prefix_length=3), name="p")
    adapters.use(model, "p")
    found = FewShot(model, tokenizer, LABELS, EXAMPLES).label(TEXTS).probabilities
    np.testing.assert_allclose(found, shares(likelihoods(model, tokenizer, EXAMPLES, TEXTS)), 1e-4)
    adapters.use(model, None)
    assert not np.allclose(found, FewShot(model, tokenizer, LABELS, EXAMPLES).label(TEXTS).probabilities, 1e-3)


def test_calibration_is_zhao_s(tokenizer):
    model = make()
    plain, free = FewShot(model, tokenizer, LABELS, EXAMPLES), likelihoods(model, tokenizer, EXAMPLES, CONTENT_FREE)
    expected = plain.label(TEXTS).probabilities / shares(free).mean(0)
    found = FewShot(model, tokenizer, LABELS, EXAMPLES, calibrated=True).label(TEXTS).probabilities
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), 1e-4)


def test_examples_without_room_are_left_out_and_told(tokenizer):
    model = make(n_positions=96)
    examples = EXAMPLES * 3
    long = "the film " * 20
    with pytest.warns(UserWarning, match="2 of 2 texts have no room for 12 examples within 96 positions; they show 0"):
        found = FewShot(model, tokenizer, LABELS, examples).label([long, "film"])
    assert 0 == found.shown[0] < found.shown[1] < 12
    for text, shown, row in zip([long.strip(), "film"], found.shown, found.probabilities, strict=True):
        expected = shares(likelihoods(model, tokenizer, examples[:shown], [text]))
        np.testing.assert_allclose(row[None], expected, 1e-4)


def test_fills_the_positions_exactly(tokenizer):
    """The longest text that is not refused is read, and one more example or token is too many."""
    model = make(n_positions=96)
    few = FewShot(model, tokenizer, LABELS)
    for words in range(1, 96):
        text = "film " * words
        try:
            few.label([text])
        except ValueError as error:
            assert "more than the" in str(error) and "96 positions" in str(error)
            break
    assert words > 10
    longest = max(len(tokenizer.encode(f" {label}")) for label in LABELS)
    assert 1 + len(tokenizer.encode(TEMPLATE.replace("{text}", text.strip()))) + longest - 1 > 96


def test_choose():
    labels = [0] * 50 + [1] * 5 + [2] * 50
    assert choose(labels, 8, seed=1) == choose(labels, 8, seed=1) != choose(labels, 8, seed=2)
    for k in (1, 3, 4, 9, 30):
        found = choose(labels, k, seed=k)
        counts = np.bincount([labels[i] for i in found], minlength=3)
        assert len(set(found)) == k and counts[1] == min(counts[1], 5)
        assert counts.max() - counts.min() <= 1 or counts[1] == 5
        assert choose(labels, 99, seed=k)[:k] == found
    with pytest.raises(ValueError, match="k=106 is more than the 105 examples"):
        choose(labels, 106)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["good", "goodness"]}, "'goodness' begins with the label 'good'"),
        ({"labels": ["good"]}, "give two or more"),
        ({"template": "what?"}, "has no {text}"),
        ({"model": make(vocab_size=300)}, "the tokenizer has 320 ids, the model 300"),
    ],
)
def test_refused(tokenizer, changes, message):
    with pytest.raises(ValueError, match=message):
        FewShot(**{"model": make(), "tokenizer": tokenizer, "labels": LABELS, **changes})


def test_nothing_to_label_and_no_needless_warning(tokenizer):
    with warnings.catch_warnings(action="error"):
        found = FewShot(make(), tokenizer, LABELS, EXAMPLES).label([])
    assert found.probabilities.shape == (0, 3) and found.shown.shape == (0,)
