"""Recommendations: each active user once, nothing he has chosen, reasons that are true."""

import json
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from gpt2.data.tokenizer import Tokenizer
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.tasks.recommendation import report
from gpt2.tasks.recommendation.config import RecommendationSettings, RecommendConfig
from gpt2.tasks.recommendation.dataset import load_disliked, load_examples
from gpt2.tasks.recommendation.recommend import catalogue, histories, recommend
from gpt2.tasks.recommendation.task import TASK

STRANGER = pd.DataFrame({"chosen": [["not in the catalogue"]], "disliked": [[]]}, ["new"])


def rated(folder, **columns):
    """(folder of a catalogue of 12 items; its ratings, of which a third are low), with columns of other names."""
    folder.mkdir()
    items = pd.DataFrame({"item": [f"f{i}" for i in range(12)], "title": [f"Film {i}" for i in range(12)]})
    items.assign(text=["drama", "noir", "war"] * 4).to_csv(folder / "items.csv", index=False)
    rows = [(f"u{u}", f"f{(u + 2 * s) % 12}", 10 * u + s, (5, 4, 1)[(u + s) % 3]) for u in range(8) for s in range(6)]
    rows += [("hater", f"f{i}", 200 + i, 2) for i in range(9)]  # he liked nothing
    rows += [
        ("u0", "f11", 90, 1),
        ("u0", "f11", 91, 5),
        ("u1", "f1", 98, 1),
        ("u1", "f2", 99, 1),
    ]  # liked at last; disliked at last
    ratings = pd.DataFrame(rows, columns=["user", "item", "time", "weight"])
    ratings.rename(columns=columns).to_csv(folder / "interactions.csv", index=False)
    return folder, ratings


def saved(folder, **settings):
    """A recommender with random weights that learned from the folder's files."""
    examples, out = folder / "examples", folder / "model"
    examples.mkdir(), out.mkdir()
    TASK.prepare(RecommendationSettings(source=str(folder), **settings), folder, examples)
    tokenizer = Tokenizer.train(["Film drama noir war"] * 20, 270)
    torch.manual_seed(0)
    shape = ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=270)
    TASK.save(TASK.module(GPT2(shape), examples, tokenizer), examples, tokenizer, 8, out)
    return out


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
    users, predictor = histories(small_data["interactions"], config, directory), TASK.predictor(directory)
    items, chosen = catalogue(directory), users["chosen"]
    ids, parts = items["item"].tolist(), [set(text.split(", ")) for text in items["text"]]
    table = recommend(predictor, items, users, config, "models:/r/1")
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
            assert told == f"The choices of this user closest to it by the model: {predictor.titles[nearest]}"
            both = parts[nearest] & parts[ids.index(row.item)] - {""}
            assert set(filter(None, common.split(", "))) == {p for p in both if sum(p in each for each in parts) > 1}
            assert row.reason_kind == "facts"


def test_who_is_unknown_gets_what_is_popular_and_is_told_so(directory):
    predictor = TASK.predictor(directory)
    table = recommend(predictor, catalogue(directory), STRANGER, RecommendConfig(top_k=2), "v")
    assert table["reason"].str.startswith("Ranked by popularity alone").all()
    popular = predictor.module.log_popularity.numpy()
    places = catalogue(directory).reset_index().set_index("item")["index"]
    assert np.isclose(popular[places[table["item"]]], np.sort(popular)[::-1][:2]).all()


def test_who_has_been_away_is_not_active(directory, small_data):
    everyone = histories(small_data["interactions"], RecommendConfig(), directory)
    latest = histories(small_data["interactions"], RecommendConfig(active_days=500 / 86400), directory)
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
    users, predictor = histories(small_data["interactions"], config, directory), TASK.predictor(directory)
    users, items = pd.concat([users, STRANGER]), catalogue(directory)
    plain = recommend(predictor, items, users, config, "v")
    writer = Writer(items["title"].tolist()[:-3])  # it does not know the last
    told = recommend(predictor, items, users, config, "v", writer, "w/2")
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
    mine = tuple(place[i] for i in users.loc["0", "chosen"] if place[i] < len(items) - 3)
    assert (place[first["item"].iloc[0]], mine, 7) in writer.asked


def test_what_was_rated_low_is_seen_and_says_nothing_of_taste(tmp_path):
    source, ratings = rated(tmp_path / "films")
    model = saved(source, min_weight=4)
    users, predictor = histories(source, RecommendConfig(), model), TASK.predictor(model)  # min_weight is the model's
    table = recommend(predictor, catalogue(model), users, RecommendConfig(top_k=12), "v")
    for user, own in ratings.groupby("user"):
        liked = own[own["weight"] >= 4].drop_duplicates("item")
        assert sorted(users.loc[user, "chosen"]) == sorted(liked["item"])
        assert set(table.loc[table["user"] == user, "item"]) == {f"f{i}" for i in range(12)} - set(own["item"])
        expected = predictor.scores([[predictor.index[i] for i in users.loc[user, "chosen"]]])[0]
        for row in table[table["user"] == user].itertuples():
            assert row.score == pytest.approx(expected[predictor.index[row.item]], rel=1e-5)
    assert users.loc["hater", "chosen"] == [] and len(users) == 9
    assert table.loc[table["user"] == "hater", "reason"].str.startswith("Ranked by popularity alone").all()
    everything = histories(source, RecommendConfig(min_weight=0), model)
    assert everything["disliked"].map(len).sum() == 0 and len(everything.loc["hater", "chosen"]) == 9


def test_evaluation_ranks_the_last_like_among_what_was_not_seen_by_then(tmp_path):
    source, ratings = rated(tmp_path / "films")
    model = saved(source, min_weight=4)
    found, (liked, items) = load_disliked(source / "examples"), load_examples(source / "examples")
    names, seen = pd.read_parquet(source / "examples" / "histories.parquet")["user"], {}
    for user, history, low in zip(names, liked, found, strict=True):
        own = ratings[ratings["user"] == user]
        last = own.loc[own["item"] == f"f{history[-1]}"].loc[own["weight"] >= 4, "time"].min()
        before = {int(i[1:]) for i in own.loc[own["time"] <= last, "item"]}
        assert set(low) == before - set(history)
        seen[user] = before | set(history[:-1])
    assert sum(map(len, found)) >= 8 and 2 not in seen["u1"]  # which came later
    predictor, popular = TASK.predictor(model), items["popularity"].to_numpy(float)
    ranks = report.ranks(predictor, liked, popular, found)["model"]
    for user, history, rank in zip(names, liked, ranks, strict=True):
        scores = predictor.scores([history[:-1]])[0]
        rivals = [scores[i] for i in range(12) if i not in seen[user] and i != history[-1]]
        assert rank == 1 + sum(s > scores[history[-1]] for s in rivals)
    assert load_disliked(small := saved(rated(tmp_path / "all")[0]).parent / "examples") is None and small.exists()


def test_columns_are_those_that_the_model_learned_from(tmp_path):
    names = {"user": "viewer", "item": "film", "time": "seen", "weight": "stars"}
    source, _ = rated(tmp_path / "films", **names)
    fields = {f"{name}_field": column for name, column in names.items()}
    model = saved(source, min_weight=4, **fields)
    users = histories(source, RecommendConfig(), model)
    plain, _ = rated(tmp_path / "plain")
    assert users.equals(histories(plain, RecommendConfig(), saved(plain, min_weight=4)))
    table = pd.read_csv(source / "interactions.csv")  # with others of the default names beside them
    table.assign(user="shop", item="f0", time=0, weight=1).to_csv(source / "interactions.csv", index=False)
    assert users.equals(histories(source, RecommendConfig(), model))
    for wrong, message in (
        ({"user_field": "customer"}, r"interactions.csv has no column 'customer'; it has viewer.*set user_field"),
        ({"weight_field": "rating"}, r"no column 'rating'.*set weight_field"),
        ({"item_field": "viewer", "user_field": "user"}, r"none of 61 interactions.*'u0' in 'viewer'; set item_field"),
        ({"item_field": "viewer"}, "named twice among viewer, viewer"),
    ):
        with pytest.raises(ValueError, match=message):
            histories(source, RecommendConfig(**wrong), model)
    facts = json.loads((model / "task.json").read_text())
    del facts["interactions"]  # as older models
    (model / "task.json").write_text(json.dumps(facts))
    assert histories(source, RecommendConfig(), model).index.tolist() == ["shop"]
