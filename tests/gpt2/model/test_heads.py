"""Heads: padding does not matter, batches split exactly, losses are what they say, bf16 works."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from gpt2.data.tokenizer import Tokenizer
from gpt2.model.config import ModelConfig
from gpt2.model.heads import Classifier, pack, pad, pooled
from gpt2.model.transformer import GPT2
from gpt2.tasks.recommendation.dataset import HistoryDataset, Recommender, log_popularity, texts

ROWS = [[5, 6, 7, 8, 9], [1, 2], [3, 4, 5]]
LABELS = torch.tensor([0, 2, 1])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT2(ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=300))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train((f"the film number {i} of {i * i} good and bad things" for i in range(300)), 300)


@pytest.fixture
def items():
    titles = [f"Film {i}" for i in range(30)]
    return pd.DataFrame({"item": titles, "title": titles, "text": "Drama", "popularity": np.arange(30)})


@pytest.fixture
def histories():
    generator = np.random.default_rng(0)
    return HistoryDataset([generator.permutation(30)[:n] for n in (5, 9, 20, 12)], context=6)


@pytest.fixture
def recommender(model, items, tokenizer):
    return Recommender(model, texts(items, tokenizer), log_popularity(items)).eval()


def test_pad_and_pool():
    ids, lengths = pad(ROWS)
    assert ids.tolist()[1] == [1, 2, 0, 0, 0] and lengths.tolist() == [5, 2, 3]
    hidden = torch.randn(3, 5, 4)
    for i, row in enumerate(ROWS):
        torch.testing.assert_close(pooled(hidden, lengths)[i], hidden[i, : len(row)].mean(0))


def test_classifier_does_not_see_padding(model):
    module = Classifier(model, 3).eval()
    together = module.logits(*pad(ROWS))
    for i, row in enumerate(ROWS):
        torch.testing.assert_close(together[i : i + 1], module.logits(*pad([row])))


def test_classifier_weighs_every_sample_equally(model):
    module = Classifier(model, 3).eval()
    ids, lengths = pad(ROWS)
    alone = [module(*pad([row]), LABELS[i : i + 1]) for i, row in enumerate(ROWS)]
    torch.testing.assert_close(module(ids, lengths, LABELS), torch.stack(alone).mean())


def test_classifier_in_bf16(model):
    module = Classifier(model, 3).to(torch.bfloat16)
    loss = module(*pad(ROWS), LABELS)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_recommender_weighs_every_window_equally(recommender, histories):
    """However a batch is split, the mean of the parts' losses is the loss of the whole."""
    n = len(histories)
    assert n > 4  # long histories are cut into windows
    alone = [recommender(**histories.batch([i], seed=7)) for i in range(n)]
    torch.testing.assert_close(recommender(**histories.batch(range(n), seed=7)), torch.stack(alone).mean())


def test_recommender_in_bf16(recommender, histories):
    module = recommender.to(torch.bfloat16)
    loss = module(**histories.batch([0, 1, 2], seed=1))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters() if p.ndim == 1)


def test_loss_is_the_softmax_over_the_catalogue(recommender):
    history, following = torch.tensor([[0, 1, 2]]), torch.tensor([[1, 2, 3]])
    features = recommender.features()
    items, packed = pack(history, torch.tensor([3]))
    scores = recommender.scores(recommender.tastes(items, packed, features), recommender.embeddings(features))
    assert scores.shape == (3, 30)
    torch.testing.assert_close(recommender(history, following), F.cross_entropy(scores, following[0]))


def test_an_item_is_its_words(model, items, tokenizer):
    """Two items of the same text have the same embedding, whatever their popularity."""
    same = items.assign(title="One Title")
    module = Recommender(model, texts(same, tokenizer), log_popularity(same))
    embeddings = module.embeddings(module.features())
    torch.testing.assert_close(embeddings, embeddings[:1].expand_as(embeddings))


def test_tastes_do_not_see_later_films(recommender):
    features = recommender.features()
    first, second = (
        recommender.tastes(*pack(torch.tensor([[3, 4, last]]), torch.tensor([3])), features) for last in (5, 9)
    )
    torch.testing.assert_close(first[:2], second[:2])
    assert not torch.allclose(first[2], second[2])
