"""A catalogue of one's own: files as they come, refused by name or read as brute force says."""

import json
import random
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gpt2.data import samples
from gpt2.tasks.recommendation.catalogue import TITLE_CHARS, beginning, in_order, prepare, sentence, usable
from gpt2.tasks.task import task

KIND = task("recommendation")
FORMS = ["csv", "jsonl", "parquet"]


def write(table: pd.DataFrame, path):
    """The table, in the form that the suffix names."""
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    else:
        table.to_parquet(path, index=False)
    return path


def shoes(count: int = 12) -> pd.DataFrame:
    colours = ["red", "blue", "green"]
    return pd.DataFrame([(i, f"Shoe {i}", colours[i % 3]) for i in range(count)], columns=["id", "text", "colour"])


def walks(users: int = 6, steps: int = 6, items: int = 12) -> pd.DataFrame:
    rows = [(u, (u + 2 * s) % items, 1000 * u + s, 1 + (u + s) % 5) for u in range(users) for s in range(steps)]
    return pd.DataFrame(rows, columns=["user", "item", "time", "weight"])


def prepared(folder, items, choices, form="csv", **changes):
    """(settings, counts, items, histories) of two tables, or of what stands in two files."""
    folder.mkdir(exist_ok=True)
    names = [folder / f"things.{form}", folder / f"clicks.{form}"]
    for table, path in zip((items, choices), names, strict=True):
        if isinstance(table, pd.DataFrame):
            write(table, path)
        else:
            path.write_text(table)
    found = KIND.Settings(source=str(names[0]), interactions=str(names[1]), **changes)
    counts = KIND.prepare(found, names[0], folder)
    histories = pd.read_parquet(folder / "histories.parquet")
    return found, counts, pd.read_parquet(folder / "items.parquet"), histories


# What is read


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=80
    ),
    least=st.sampled_from([None, 2, 3.5]),
    order=st.randoms(use_true_random=False),
)
def test_histories_are_what_brute_force_says(tmp_path_factory, rows, least, order):
    """Items 8 and 9 are not in the catalogue."""
    chosen = defaultdict(dict)
    for user, item, time, weight in rows:
        if item < 8 and (least is None or weight >= least):
            chosen[user][item] = min(time, chosen[user].get(item, time))
    users = sorted(user for user, items in chosen.items() if len(items) >= 4)
    order.shuffle(rows)
    table = pd.DataFrame(rows, columns=["user", "item", "time", "weight"])
    liked = sum(least is None or w >= least for *_, w in rows)
    folder = tmp_path_factory.mktemp("brute")
    if len(users) < 2:
        with pytest.raises(ValueError, match=r"users have 4 items|no interaction weighs"):
            prepared(folder, shoes(8), table, min_weight=least, max_unknown=1)
        return
    _, counts, items, histories = prepared(folder, shoes(8), table, min_weight=least, max_unknown=1)
    assert histories["user"].tolist() == users
    for user, found in zip(users, histories["items"], strict=True):
        moments = [chosen[user][i] for i in found]
        assert sorted(found) == sorted(chosen[user]) and moments == sorted(moments)
    unknown = sum(i >= 8 and (least is None or w >= least) for _, i, _, w in rows)
    distinct = sum(map(len, chosen.values()))
    assert counts["unknown_items"] == unknown and counts["repeated"] == liked - unknown - distinct
    assert counts["interactions"] == sum(len(chosen[u]) for u in users) == sum(map(len, histories["items"]))
    assert counts["users_with_few"] == sum(0 < len(chosen[u]) < 4 for u in chosen)
    trained = [i for items in histories["items"] for i in items[:-2]]
    assert items["popularity"].tolist() == [trained.count(i) for i in range(8)]
    moments = [(i, chosen[u][i]) for u, own in zip(users, histories["items"], strict=True) for i in own[:-2]]
    last, first = (f(t for _, t in moments) for f in (max, min))
    recent = [sum(0.5 ** (8 * (last - t) / max(last - first, 1)) for j, t in moments if j == i) for i in range(8)]
    assert items["recent"].tolist() == pytest.approx(recent)


@pytest.mark.parametrize("moment", [
    lambda t: t, lambda t: t * 1000 + 10**12, lambda t: (pd.Timestamp(0) + pd.Timedelta(seconds=t)).isoformat()
])  # fmt: skip
@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_order_of_the_files_gives_the_same_examples(tmp_path, form, moment):
    _, counts, items, histories = prepared(tmp_path / "a", shoes(), walks())
    shuffled = walks().sample(frac=1, random_state=1).assign(time=lambda t: t["time"].map(moment))
    _, again, same, equal = prepared(tmp_path / "b", shoes(), shuffled, form)
    assert again == counts and same.equals(items) and equal.equals(histories)
    assert histories["user"].tolist() == list(range(6)) and counts["users"] == 6


def test_times_are_in_order_of_time_also_as_text(tmp_path):
    """In a csv, 9 is later than 10 for who compares letters."""
    table = pd.DataFrame([(u, i, 6 + i, 1) for u in (1, 2) for i in range(6)], columns=["user", "item", "time", "w"])
    *_, histories = prepared(tmp_path, shoes(), table)
    assert [h.tolist() for h in histories["items"]] == [[0, 1, 2, 3, 4, 5]] * 2


def test_attributes_follow_the_text_as_is_said(tmp_path):
    long = "A shoe " + "that goes on " * 12
    rows = [
        {"id": 7, "text": "Blue shoes", "brand": "Acme", "size": 42.0, "tags": ["light", "new"], "more": {"a": 1}},
        {"id": "x", "text": None, "brand": "Bolt", "size": None, "tags": [], "more": None},
        {"id": "y", "text": long, "brand": "", "size": 1.5, "tags": None, "more": None},
        {"id": None, "text": "no id"}, {"id": "z", "text": " "}, {"id": "7", "text": "again", "brand": "Acme"},
    ]  # fmt: skip
    content = "".join(json.dumps(row) + "\n" for row in rows)
    choices = pd.DataFrame(
        [(u, i, t) for u in "ab" for t, i in enumerate(["7", "x", "y"] * 2)], columns=["user", "item", "time"]
    )
    (tmp_path / "things.jsonl").write_text(content)
    write(choices, tmp_path / "clicks.jsonl")
    found = KIND.Settings(source="things.jsonl", interactions=str(tmp_path / "clicks.jsonl"))
    from gpt2.tasks.recommendation.catalogue import read_items

    items, counts = read_items(tmp_path / "things.jsonl", found)
    assert items["item"].tolist() == ["7", "x", "y"]
    assert counts == {"items_without_id": 1, "items_without_text": 1, "items_repeated": 1}
    assert items["text"].tolist() == [
        "Blue shoes; brand: Acme; size: 42; tags: light, new; more: a 1", "brand: Bolt", f"{long.strip()}; size: 1.5"
    ]  # fmt: skip
    assert items["title"].tolist()[:2] == ["Blue shoes", "brand: Bolt"] and len(items["title"][2]) <= TITLE_CHARS
    told = [sentence(title, text) for title, text in zip(items["title"], items["text"], strict=True)]
    assert told == items["text"].tolist()  # a title that is made of the text isn't told twice
    some, _ = read_items(tmp_path / "things.jsonl", KIND.Settings(attributes=["size", "brand"]))
    assert some["text"][0] == "Blue shoes; size: 42; brand: Acme"
    none, _ = read_items(tmp_path / "things.jsonl", KIND.Settings(attributes=[], title_field="brand"))
    assert (none["title"][0], none["text"][0]) == ("Acme", "Blue shoes") and sentence("a", "") == "a"
    assert sentence("Acme", "Blue shoes") == "Acme: Blue shoes"


@given(st.text(max_size=200))
def test_a_title_is_how_the_text_begins(text):
    found = beginning(text)
    assert text.startswith(found) and len(found) <= TITLE_CHARS and "\n" not in found
    assert found or not text.partition("\n")[0].strip()


MOVIELENS = ("user_id", "movie_id", "rating", "timestamp")


def small_movielens(folder):
    """Made up, in the form of the sample."""
    generator = random.Random(0)
    ratings = [
        (u, i, generator.randint(1, 5), generator.randint(0, 9)) for u in range(1, 25) for i in range(1, 15, 1 + u % 2)
    ]
    pd.DataFrame(ratings, columns=MOVIELENS).to_parquet(folder / "MovieLens100k_data.parquet.brotli")
    films = pd.DataFrame({"movie_id": range(1, 15), "movie_title": [f"Film {i} (1990)" for i in range(1, 15)]})
    genres = {name: [(i + n) % 3 == 0 for i in range(14)] for n, name in enumerate(["Drama", "Comedy", "War"])}
    films.assign(unknown=False, **genres).to_parquet(folder / "MovieLens100k_items.parquet.brotli")
    return folder


@pytest.mark.parametrize("data", ["made up", pytest.param("the sample", marks=pytest.mark.slow)])
def test_the_sample_written_out_as_two_files_gives_the_same_examples(tmp_path, data):
    source, out = tmp_path, tmp_path / "built in"
    source = small_movielens(tmp_path) if data == "made up" else samples.fetch("movielens", tmp_path)
    ratings = pd.read_parquet(source / "MovieLens100k_data.parquet.brotli")
    films = pd.read_parquet(source / "MovieLens100k_items.parquet.brotli")
    names = films.columns[films.columns.get_loc("unknown") + 1 :]
    genres = [", ".join(n for n in names if film[n]) for film in films.to_dict("records")]
    items = pd.DataFrame({"id": films["movie_id"], "title": films["movie_title"], "text": genres})
    columns = {"user_field": "user_id", "item_field": "movie_id", "time_field": "timestamp", "weight_field": "rating"}
    for changes in ({}, {"min_weight": 4}):
        out.mkdir(exist_ok=True)
        counts = KIND.prepare(KIND.Settings(**changes), source, out)
        choices = ratings.sample(frac=1, random_state=0)
        _, again, same, equal = prepared(tmp_path / "mine", items, choices, **columns, **changes)
        assert {n: c for n, c in again.items() if not n.startswith("items_")} == counts
        expected = pd.read_parquet(out / "items.parquet")  # three titles of the sample end with a space
        assert same.equals(expected.assign(title=expected["title"].str.strip()))
        assert equal.equals(pd.read_parquet(out / "histories.parquet"))
    if data == "the sample":
        assert counts["below_min_weight"] == int((ratings["rating"] < 4).sum()) > 40_000


def test_a_longer_text_is_read_where_that_is_asked_for(tmp_path):
    from gpt2.data.tokenizer import Tokenizer
    from gpt2.tasks.recommendation.dataset import facts_of, texts

    found, *_ = prepared(tmp_path, shoes(), walks(), item_tokens=5)
    assert facts_of(tmp_path)["item_tokens"] == found.item_tokens == 5
    tokenizer = Tokenizer.train(["Shoe colour red"] * 5, 257)
    items = pd.read_parquet(tmp_path / "items.parquet")
    assert {len(ids) for ids in texts(items, tokenizer, 5)} == {5} and len(texts(items, tokenizer)[0]) > 5
    histories = pd.read_parquet(tmp_path / "histories.parquet")["items"]
    assert KIND.samples(tmp_path, {}, 2) == sum(-(-(len(h) - 3) // 2) for h in histories)  # windows of 2 and the next


# What is refused


def changed(table: pd.DataFrame, row: int, column: str, value) -> pd.DataFrame:
    table = table.astype(object)
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(("items", "choices", "changes", "message"), [
    (shoes().drop(columns="id"), walks(), {}, r"things.csv has no column 'id'; it has text, colour: set id_field"),
    (shoes(), walks(), {"id_field": "sku"}, r"things.csv has no column 'sku'.*set id_field"),
    (shoes(), walks(), {"text_field": "body"}, r"things.csv has no column 'body'.*set text_field"),
    (shoes(), walks(), {"title_field": "name"}, r"things.csv has no column 'name'.*set title_field"),
    (shoes(), walks(), {"attributes": ["brand"]}, r"things.csv has no column 'brand'.*change attributes"),
    (shoes()[["id"]], walks(), {}, r"things.csv has only ids of items and nothing that describes them"),
    (shoes(0), walks(), {}, r"none of 0 rows has an id and a text"),
    ("", walks(), {}, r"things.csv has no column 'id'; it has none"),
    (shoes(), "user,item\n", {}, r"clicks.csv has no column 'time'; it has user, item: set time_field"),
    (shoes(), walks().drop(columns="user"), {}, r"clicks.csv has no column 'user'; it has item, .*set user_field"),
    (shoes(), walks(), {"item_field": "sku"}, r"clicks.csv has no column 'sku'; it has user, .*set item_field"),
    (shoes(), walks(0), {}, r"clicks.csv has no rows; add interactions"),
    (shoes(), walks().assign(user=""), {}, r"clicks.csv: none of 36 rows has a user and an item"),
    (shoes(), walks().assign(time="soon"), {}, r"36 of 36 rows have no time.*'time', such as 'soon'; write"),
    (shoes(), walks().assign(item=lambda t: t["item"] + 100), {},
     r"clicks.csv: 36 of 36 interactions are with items.*such as '100'; add them.*raise max_unknown=0.1"),
    (shoes(11), walks(), {"max_unknown": 0}, r"3 of 36 interactions are with items .*'11'.*max_unknown=0.0"),
    (shoes(), walks(), {"weight_field": "rating", "min_weight": 3}, r"clicks.csv has no column 'rating'.*weight_field"),
    (shoes(), changed(walks(), 17, "weight", "good"), {"min_weight": 3}, r"row 18: weight='good' is not a weight;"),
    (shoes(), changed(walks(), 4, "weight", ""), {"min_weight": 3}, r"row 5: weight=nan is not a weight; give"),
    (shoes(), walks(), {"min_weight": 6}, r"no interaction weighs min_weight=6.0 or more; the largest weight is 5"),
    (shoes(), walks(), {"min_weight": 5}, r"only 0 users have 4 items or more \(below min weight 29.*lower min_weight"),
    (shoes(), walks(), {"min_items": 7}, r"only 0 users have 7 items or more \(users with few 6\); add interactions"),
    (shoes(), walks(1), {}, r"only 1 users have 4 items or more"),
])  # fmt: skip
def test_what_can_not_be_learned_from_is_refused_by_name(tmp_path, items, choices, changes, message):
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, items, choices, **changes)


def test_a_few_bad_rows_are_left_out_and_counted(tmp_path):
    choices = changed(changed(walks(), 0, "time", "soon"), 1, "user", "")
    _, counts, *_ = prepared(tmp_path, shoes(11), choices)
    assert (counts["untimed"], counts["without_user_or_item"], counts["unknown_items"]) == (1, 1, 3)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"source": "items.csv"}, "set interactions to the file of interactions"),
    ({"interactions": "clicks.csv"}, "do not belong to the sample; set source"),
    ({"source": "a.csv", "interactions": "b.csv", "item_field": "user"}, "named twice among user, user, time"),
    ({"text_field": "title", "title_field": "title"}, "named twice among title, title"),
    ({"min_weight": 3, "weight_field": None}, "min_weight=3.0 needs the column of the weights"),
    ({"min_items": 3}, "greater than or equal to 4"),
])  # fmt: skip
def test_settings_that_can_not_be_meant_are_refused_before_a_file_is_read(wrong, message):
    with pytest.raises(ValidationError, match=message):
        KIND.Settings(**wrong)


CELL = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(allow_nan=False), st.text(max_size=3),
    st.lists(st.integers(0, 2), max_size=2), st.sampled_from(["2024-01-01", "1e9", " 3 ", "\ud800"]),
)  # fmt: skip
TOLD = dict.fromkeys(("id", "text", "title", "a"), CELL)


@settings(max_examples=40, deadline=None)
@given(
    items=st.lists(st.fixed_dictionaries({}, optional=TOLD), max_size=12),
    choices=st.lists(st.fixed_dictionaries({"user": CELL, "item": CELL, "time": CELL, "weight": CELL}), max_size=30),
    least=st.sampled_from([None, 1]),
)
def test_wild_files_are_refused_by_name_or_read(tmp_path_factory, items, choices, least):
    folder = tmp_path_factory.mktemp("wild")
    tables = ["".join(json.dumps(row) + "\n" for row in rows) for rows in (items, choices)]
    some = [{"user": u, "item": i, "time": i, "weight": 1} for u in ("a", "b") for i in range(100, 140)]
    things = "".join(json.dumps({"id": i, "text": f"Thing {i}"}) + "\n" for i in range(100, 140))
    for wild in (tables, [things + tables[0], "".join(json.dumps(row) + "\n" for row in some) + tables[1]]):
        try:
            _, counts, found, histories = prepared(folder, *wild, form="jsonl", min_weight=least, max_unknown=1)
        except ValueError as error:
            assert str(folder) in str(error) and len(str(error)) < 600
            continue
        assert found["item"].is_unique and (found["title"].str.len() > 0).all() and len(found) == counts["items"]
        assert all(len(set(h)) == len(h) >= 4 and max(h) < len(found) for h in histories["items"])
        assert len(histories) == counts["users"] >= 2


def test_the_order_of_equal_moments_says_nothing():
    """Who lists his items by name in one second has no order of names."""
    table = pd.DataFrame({"user": ["u"] * 26, "item": list("abcdefghijklmnopqrstuvwxyz"), "time": pd.Timestamp(0)})
    found = in_order(table)["item"].tolist()
    assert found == in_order(table[::-1])["item"].tolist() and found != sorted(found) and len(found) == 26


def test_the_readers_do_what_the_command_shows(tmp_path):
    found, counts, items, histories = prepared(tmp_path, shoes(), walks())
    table, found_histories, same = usable(tmp_path / "things.csv", found)
    assert same == counts and len(table) == len(items)
    assert all(np.array_equal(a, b) for a, b in zip(found_histories["items"], histories["items"], strict=True))
    assert prepare(tmp_path / "things.csv", found, tmp_path) == counts
