"""What a recommender's report is made from: ranks as from whole tables, in bounded memory, and what it shows."""

import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation.metrics import rank_of
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.tasks.recommendation import hybrid
from gpt2.tasks.recommendation.dataset import load_examples
from gpt2.tasks.recommendation.report import LATEST, NEXT, SHOWN, ranks, recommended
from gpt2.tasks.recommendation.task import TASK

KINDS = ("drama", "comedy", "western", "noir")


def recommender(folder, users: int, items: int, seed: int = 0):
    """(predictor, histories, items) of choices by chance and random weights."""
    drawn = np.random.default_rng(seed)
    examples, out = folder / "examples", folder / "model"
    examples.mkdir(), out.mkdir()
    histories = [drawn.choice(items, drawn.integers(4, 9), replace=False) for _ in range(users)]
    counts = hybrid.popularity([h[:-2] for h in histories], items)
    names = [f"Film {i} of {KINDS[i % 3]}" for i in range(items)]
    table = pd.DataFrame({"item": [f"f{i}" for i in range(items)], "title": names})
    table = table.assign(text=[KINDS[i % 4] for i in range(items)], popularity=counts, recent=counts / 2)
    table.to_parquet(examples / "items.parquet", index=False)
    pd.DataFrame({"user": range(users), "items": histories}).to_parquet(examples / "histories.parquet", index=False)
    (examples / "catalogue.json").write_text(json.dumps({"item_tokens": 8}))
    tokenizer = Tokenizer.train([" ".join(names[:50])], 280)
    torch.manual_seed(0)
    shape = ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=280)
    TASK.save(TASK.module(GPT2(shape), examples, tokenizer), examples, tokenizer, 8, out)
    return TASK.predictor(out), *load_examples(examples)


@given(st.integers(0, 500), st.integers(1, 300), st.integers(1, 100_000))
def test_parts_are_all_users_in_order_and_few_at_a_time(users, items, cells):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hybrid, "CELLS", cells)
        each = [list(range(users))[some] for some in hybrid.parts(users, items)]
    assert [user for part in each for user in part] == list(range(users))
    assert all(0 < len(part) <= hybrid.READ and (len(part) * items <= cells or len(part) == 1) for part in each)


@pytest.mark.parametrize("cells", [8_000_000, 90 * 5])
def test_ranks_are_those_of_whole_tables(tmp_path, monkeypatch, cells):
    """As of tables of all users and all items, by what the baselines were before they took users a few at a time."""
    monkeypatch.setattr(hybrid, "CELLS", cells)
    predictor, histories, items = recommender(tmp_path, 150, 90)
    before, wanted, n = [h[:-1] for h in histories], [h[-1] for h in histories], len(items)
    popular = hybrid.popularity([h[:-2] for h in histories], n)
    similar, (places, weights) = hybrid.cosines(before, n), hybrid.ease_weights(before, n)
    by_ease = np.zeros((150, n), np.float32)
    by_ease[:, places] = hybrid.chosen(before, n)[:, places] @ weights
    text = predictor.by_text(before)
    whole = {
        "model": predictor.with_choices(text, before),
        "popularity": np.tile(popular, (150, 1)),
        "item-kNN": (hybrid.chosen(before, n) @ similar.T).toarray(),
        "recent item-kNN": (hybrid.chosen(before, n, 0.8, last=10) @ similar.T).toarray(),
        "EASE": by_ease,
        "text alone": text,
    }
    scorers = {
        "model": predictor.scores, "item-kNN": hybrid.item_knn(similar), "text alone": predictor.by_text,
        "recent item-kNN": hybrid.recent_item_knn(similar), "EASE": hybrid.ease(before, n),
    }  # fmt: skip
    for name, score in scorers.items():
        assert np.array_equal(np.concatenate([score(before[some]) for some in hybrid.parts(150, n)]), whole[name])
    found = ranks(predictor, histories, popular)
    assert tuple(found) == ("model", *TASK.baselines)
    for name, scores in whole.items():
        assert found[name].tolist() == [rank_of(*each) for each in zip(scores, wanted, before, strict=True)]
    assert len({tuple(each) for each in found.values()}) == len(found)  # they do differ


def test_ranks_never_hold_a_table_of_all_users_and_items(tmp_path, monkeypatch):
    users, items = 1000, 2000
    predictor, histories, _ = recommender(tmp_path, users, items)
    monkeypatch.setattr(hybrid, "CELLS", 40 * items)
    monkeypatch.setattr(hybrid, "EASE_ITEMS", 50)
    asked, read = [], predictor.by_text
    monkeypatch.setattr(predictor, "by_text", lambda some: asked.append(len(some)) or read(some))
    tracemalloc.start()
    ranks(predictor, histories, hybrid.popularity(histories, items))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * users * items / 2  # half a table in single precision
    assert set(asked) == {40} and sum(asked) == users


def test_what_is_shown_is_what_it_recommends_and_what_came_next(tmp_path):
    predictor, histories, items = recommender(tmp_path, 30, 11)
    popular = hybrid.popularity(histories, len(items))
    told = recommended(predictor, histories, items, ranks(predictor, histories, popular)["model"])
    assert "30 users" in told["header"][0]
    titles, firsts = items["title"].tolist(), [n for n, row in enumerate(told["rows"]) if row[0]]
    assert len(firsts) == 4 and firsts[0] == 0
    hits = 0
    for first, end, user in zip(firsts, [*firsts[1:], len(told["rows"])], (0, 9, 19, 29), strict=True):
        own, (*before, last) = told["rows"][first:end], histories[user]
        assert own[0][0] == "; ".join(titles[i] for i in before[-LATEST:])
        ranking = predictor.predict([{"history": [titles[i] for i in before]}], {"top_k": SHOWN})["ranking"][0]
        assert [(row[1], row[2]) for row in own[:SHOWN]] == [*enumerate(ranking, 1)]
        assert all(row[3].startswith("The choices of this user closest to it by the model: ") for row in own[:SHOWN])
        ((_, place, title, _),) = [row for row in own if NEXT in row[3]]
        assert title == titles[last] and (place == 1 + ranking.index(title) if title in ranking else place > SHOWN)
        hits += titles[last] in ranking
    assert 0 < hits < 4


def test_a_champion_of_another_catalogue_is_measured_on_the_new_one(tmp_path):
    """Products came, went and changed places: what is shared has the scores of the model's own catalogue."""
    for name in ("a", "b", "out"):
        (tmp_path / name).mkdir()
    predictor, *_ = recommender(tmp_path / "a", 20, 30)
    _, histories, items = recommender(tmp_path / "b", 25, 40, seed=1)
    places = np.random.default_rng(0).permutation(40)
    items = items.iloc[places].reset_index(drop=True)  # f0 to f29 are known, but elsewhere
    items = items[items["item"] != "f3"].reset_index(drop=True)
    histories = [h[h < 39] for h in histories]
    items.to_parquet(tmp_path / "b" / "examples" / "items.parquet", index=False)
    table = pd.DataFrame({"user": range(25), "items": histories})
    table.to_parquet(tmp_path / "b" / "examples" / "histories.parquet", index=False)
    found = TASK.evaluate(tmp_path / "a" / "model", tmp_path / "b" / "examples", tmp_path / "out")
    assert "10 of 39 items are unknown to it" in found["remarks"][0] and found["tables"] == {}
    assert found["unknown_items"] == 10
    ranks = pd.read_parquet(tmp_path / "out" / "predictions.parquet")["rank_model"]
    names = items["item"].tolist()
    for history, rank in zip(histories, ranks, strict=True):
        *before, last = [names[i] for i in history]
        mine = [int(name[1:]) for name in before if int(name[1:]) < 30]
        [row] = predictor.scores([np.array(mine, dtype=int)])
        score = {name: row[int(name[1:])] if int(name[1:]) < 30 else -np.inf for name in names if name not in before}
        rest = [score[name] for name in score if name != last]
        tied = sum(value == score[last] for value in rest)
        assert rank == 1 + sum(value > score[last] for value in rest) + tied // 2
