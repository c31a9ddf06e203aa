"""Recommendations: each active user once, nothing he has chosen, reasons that are true."""

from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from gpt2.config import ModelConfig
from gpt2.model import GPT2
from gpt2.recommending import RecommendConfig, catalogue, histories, recommend
from gpt2.tasks.recommendation import TASK, RecommendationSettings
from gpt2.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def directory(small_data, tmp_path_factory):
    """A recommender with random weights, saved."""
    folder = tmp_path_factory.mktemp("recommender")
    examples, out = folder / "examples", folder / "model"
    examples.mkdir(), out.mkdir()
    source = small_data["interactions"]
    TASK.prepare(RecommendationSettings(source=str(source)), source, examples)
    tokenizer = Tokenizer.train(["Film plot actor scene story music"] * 20, 280)
    torch.manual_seed(0)
    shape = ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=280)
    module = TASK.module(GPT2(shape), examples, tokenizer)
    TASK.save(module, examples, tokenizer, 8, out)
    return out


def test_each_user_once_with_what_he_has_not_chosen(directory, small_data):
    config = RecommendConfig(top_k=3, reasons=1)
    chosen, predictor = histories(small_data["interactions"], config), TASK.predictor(directory)
    items = catalogue(directory)
    ids, parts = items["item"].tolist(), [set(text.split(", ")) for text in items["text"]]
    table = recommend(predictor, items, chosen, config, "models:/r/1")
    assert sorted(table["user"].unique()) == sorted(map(str, range(30)))
    assert not table.duplicated(["user", "item"]).any() and (table.groupby("user").size() == 3).all()
    embeddings = predictor.module.embeddings(predictor.module.features()).detach().numpy()
    expected = predictor.predict([{"history": items} for items in chosen], {"top_k": 3})["ranking"]
    for (user, rows), ranking in zip(table.groupby("user"), expected, strict=True):
        assert not set(rows["item"]) & set(chosen[user]) and rows["score"].is_monotonic_decreasing
        assert rows["title"].tolist() == ranking
        own = [ids.index(item) for item in chosen[user]]
        for row in rows.itertuples():
            nearest = own[int(np.argmax(embeddings[own] @ embeddings[ids.index(row.item)]))]
            told, _, common = row.reason.removesuffix(".").partition("; in common: ")
            assert told == f"Of what this user chose, closest to it for the model: {predictor.titles[nearest]}"
            both = parts[nearest] & parts[ids.index(row.item)] - {""}
            assert set(filter(None, common.split(", "))) == {p for p in both if sum(p in each for each in parts) > 1}
            assert row.reason_kind == "facts"


def test_who_is_unknown_gets_what_is_popular_and_is_told_so(directory):
    chosen = pd.Series({"new": ["not in the catalogue"]})
    predictor = TASK.predictor(directory)
    table = recommend(predictor, catalogue(directory), chosen, RecommendConfig(top_k=2), "v")
    assert table["reason"].str.startswith("Ranked by popularity alone").all()
    popular = predictor.module.log_popularity.numpy()
    places = catalogue(directory).reset_index().set_index("item")["index"]
    assert np.isclose(popular[places[table["item"]]], np.sort(popular)[::-1][:2]).all()


def test_who_has_been_away_is_not_active(small_data):
    everyone = histories(small_data["interactions"], RecommendConfig())
    latest = histories(small_data["interactions"], RecommendConfig(active_days=500 / 86400))
    assert len(everyone) == 30 and set(latest.index) == {"25", "26", "27", "28", "29"} | (set(latest.index) & {"24"})


class Writer:
    """Says of each item what it is and of whom it was asked; of every third nothing."""

    params: ClassVar = {"samples": 4, "temperature": 0.7, "seed": 0}

    def __init__(self, titles):
        self.titles, self.index, self.asked = titles, {title: i for i, title in enumerate(titles)}, []

    def reason(self, item, history, params):
        self.asked.append((item, tuple(history), params["samples"]))
        return ("", "it is copied") if item % 3 == 0 else (f"{self.titles[item]} is good.", "")


def test_what_a_writer_may_say_is_the_reason_and_facts_are_all_others(directory, small_data):
    config = RecommendConfig(top_k=4, written=2, samples=7)
    chosen, predictor = histories(small_data["interactions"], config), TASK.predictor(directory)
    chosen = pd.concat([chosen, pd.Series({"new": ["not in the catalogue"]})])
    items = catalogue(directory)
    plain = recommend(predictor, items, chosen, config, "v")
    writer = Writer(items["title"].tolist()[:-3])  # it does not know the last
    told = recommend(predictor, items, chosen, config, "v", writer, "w/2")
    assert told.drop(columns=plain.columns[6:]).equals(plain.drop(columns=plain.columns[6:]))
    for row, fact in zip(told.itertuples(), plain["reason"], strict=True):
        number = items["title"].tolist().index(row.title)
        known, asked = number < len(items) - 3, row.rank <= 2 and row.user != "new"
        if asked and known and number % 3:
            expected = (f"{row.title} is good.", "generated", "w/2", "")
        else:
            why = "" if not asked else "it is copied" if known else "the writer does not know the item"
            expected = (fact, "facts", "", why)
        assert (row.reason, row.reason_kind, row.reason_version, row.withheld) == expected
    assert set(told["reason_kind"]) == {"generated", "facts"} and "it is copied" in set(told["withheld"])
    first = told[(told["user"] == "0") & (told["rank"] == 1)]
    place = {item: i for i, item in enumerate(items["item"])}
    mine = tuple(place[i] for i in chosen["0"] if place[i] < len(items) - 3)
    assert (place[first["item"].iloc[0]], mine, 7) in writer.asked
