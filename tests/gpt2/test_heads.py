"""Heads: padding does not matter, batches split exactly, losses are what they say, bf16 works."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from gpt2.config import ModelConfig
from gpt2.heads import Classifier, Recommender, pad, pooled
from gpt2.model import GPT2
from gpt2.tasks.recommendation import Catalogue, HistoryDataset, log_popularity
from gpt2.tokenizer import Tokenizer

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
def histories(tokenizer, items):
    generator = np.random.default_rng(0)
    users = [generator.permutation(30)[:n] for n in (5, 9, 20, 12)]
    return HistoryDataset(users, Catalogue(items, tokenizer), context=48, last_only=False)


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


def test_recommender_weighs_every_window_equally(model, histories, items):
    """However a batch is split, the mean of the parts' losses is the loss of the whole."""
    module = Recommender(model, log_popularity(items)).eval()
    n = len(histories)
    assert n > 4  # long histories are cut into windows
    alone = [module(**histories.batch([i], seed=7)) for i in range(n)]
    torch.testing.assert_close(module(**histories.batch(range(n), seed=7)), torch.stack(alone).mean())


def test_recommender_in_bf16(model, histories, items):
    module = Recommender(model, log_popularity(items)).to(torch.bfloat16)
    loss = module(**histories.batch([0, 1, 2], seed=1))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert module.popularity_weight.grad is not None and module.popularity_weight.grad.isfinite().all()


def test_every_item_drawn_is_the_full_softmax(model, histories, items):
    module = Recommender(model, log_popularity(items)).eval()
    n = len(items)
    item_ids, item_lengths = pad(histories.catalogue.long)
    ids, ends, _ = histories.catalogue.history(list(range(6)), 64)
    ends_t, following = torch.tensor([ends]), torch.tensor([[1, 2, 3, 4, 5, 6]])
    everything = torch.zeros(n)  # log of 1: each is drawn for sure
    loss = module(torch.tensor([ids]), ends_t, following, item_ids, item_lengths, torch.arange(n), everything)
    scores = module.scores(
        module.tastes(torch.tensor([ids]), ends_t), module.embed_items(item_ids, item_lengths), log_popularity(items)
    )
    torch.testing.assert_close(loss, F.cross_entropy(scores[0], following[0]))


def test_items_that_are_only_anothers_next_are_no_negatives(model, items, histories):
    module = Recommender(model, log_popularity(items)).eval()
    batch = histories.batch([0], seed=3)
    batch["log_expected"] = torch.full_like(batch["log_expected"], -float("inf"))
    torch.testing.assert_close(module(**batch), torch.tensor(0.0))  # nothing competes with the next item


def test_log_expected_is_how_often_an_item_is_drawn(items, tokenizer, monkeypatch):
    monkeypatch.setattr("gpt2.tasks.recommendation.NEGATIVES", 6)
    data = HistoryDataset([np.arange(3)], Catalogue(items, tokenizer), context=48, last_only=False)
    times, said, draws = np.zeros(30), np.zeros(30), 4000
    for seed in range(draws):
        batch = data.batch([0], seed)
        drawn = batch["log_expected"].isfinite()
        times[batch["items"][drawn]] += 1
        said[batch["items"][drawn]] = batch["log_expected"][drawn].exp().numpy()
    assert times / draws == pytest.approx(said, abs=0.03)


def test_a_step_shares_its_negatives(histories):
    one, other = histories.batch([0], seed=5), histories.batch([1], seed=5)
    drawn = [set(b["items"][b["log_expected"].isfinite()].tolist()) for b in (one, other)]
    assert drawn[0] == drawn[1]


def test_tastes_do_not_see_later_films(model, items, histories):
    module, catalogue = Recommender(model, log_popularity(items)).eval(), histories.catalogue
    read = [catalogue.history([3, 4, last], 64) for last in (5, 9)]
    first, second = (module.tastes(torch.tensor([ids]), torch.tensor([ends])) for ids, ends, _ in read)
    torch.testing.assert_close(first[:, :2], second[:, :2])
    assert not torch.allclose(first[:, 2], second[:, 2])


def test_a_history_ends_each_film_and_keeps_the_latest(tokenizer, items):
    catalogue = Catalogue(items, tokenizer)
    ids, ends, left_out = catalogue.history(list(range(30)), 48)
    assert len(ids) <= 48 and left_out == 30 - len(ends) > 0
    assert all(ids[end] == tokenizer.end_of_text for end in ends)
    assert ids[ends[-2] + 1 :] == catalogue.short[29]
