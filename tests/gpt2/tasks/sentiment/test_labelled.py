"""Any labelled file: wild ones are refused by name or split without leaks, as brute force says."""

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.near_duplicates import groups
from gpt2.data.splits import SPLITS, split_by_time
from gpt2.data.tables import read_table
from gpt2.data.tokenizer import Tokenizer
from gpt2.model.config import ModelConfig
from gpt2.model.heads import Classifier
from gpt2.model.transformer import GPT2
from gpt2.tasks.sentiment.config import SentimentSettings, fold
from gpt2.tasks.sentiment.dataset import TextDataset, divided, indexed, weighted, write
from gpt2.tasks.sentiment.report import tfidf_logistic_regression
from gpt2.tasks.task import task

HEADLINES = Path(__file__).parents[4] / ".." / "shared" / "data" / "financial_headlines.json"
START = datetime(2024, 1, 1, tzinfo=UTC)
NOUNS = (
    "crew", "meal", "seat", "delay", "price", "gate", "bag", "screen", "engine", "coffee", "staff", "website", "aisle",
)  # fmt: skip


def text(i: int) -> str:
    """Texts of which no two are near-duplicates."""
    generator = np.random.default_rng(i)
    return (
        f"{' '.join(generator.permutation(NOUNS)[:8])} {chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}"
    )


def rows(count: int = 200, **columns) -> pd.DataFrame:
    table = pd.DataFrame(
        {"text": [text(i) for i in range(count)], "label": [("bad", "good")[i % 2] for i in range(count)]}
    )
    return table.assign(**columns)


def prepare(path, settings, folder):
    tables, labels, counts = divided(path, settings)
    write(tables, labels, counts, folder)
    return counts


def prepared(table: pd.DataFrame, folder: Path, form: str = "csv", **changes):
    """(counts, the splits) of a table that is written as a file and read again."""
    path = folder / f"some.{form}"
    if form == "csv":
        table.to_csv(path, index=False)
    elif form == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path, index=False)
    counts = prepare(path, SentimentSettings(**changes), folder)
    assert counts == json.loads((folder / "counts.json").read_text())
    return counts, {split: pd.read_parquet(folder / f"{split}.parquet") for split in SPLITS}


# Times


@settings(max_examples=60, deadline=None)
@given(
    moments=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    joins=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=12),
    test=st.floats(0.05, 0.5),
    validation=st.floats(0.02, 0.4),
)
def test_the_newest_are_held_out_as_brute_force_says(moments, joins, test, validation):
    times = pd.Series(pd.to_datetime(moments, unit="h", utc=True))
    member = list(range(len(moments)))
    for a, b in joins:
        if max(a, b) < len(moments):
            member = [member[min(a, b)] if m == member[max(a, b)] else m for m in member]
    group = np.array([member.index(m) for m in member])
    place = [0] * len(moments)
    for split, share in ((2, test), (1, validation)):
        rest, wanted = [i for i, p in enumerate(place) if p == 0], math.ceil(share * len(moments))
        newest = sorted((moments[i] for i in rest), reverse=True)[:wanted]
        for i in rest:
            if moments[i] in newest:
                place[i] = split
    found = split_by_time(times, group, test, validation)
    for i, p in enumerate(place):
        later = any(group[j] == group[i] and place[j] > p for j in range(len(place)))
        assert found[i] == ("" if later else SPLITS[p])


def test_a_file_with_times_is_tested_on_its_newest_and_copies_leave_the_past(tmp_path):
    table = rows(300, time=[(START + timedelta(hours=i)).isoformat() for i in range(300)])
    past, now = table.iloc[[3, 40, 41]], pd.DataFrame(table.iloc[[297, 298, 299]])
    exact = now.assign(text=past["text"].tolist(), label=["good", "good", "good"])  # one of them had another label
    near = now.assign(text=[f"@someone {t}!! http://t.co/x" for t in table["text"].iloc[[5, 6, 7]]])
    counts, parts = prepared(pd.concat([table, exact, near]), tmp_path)
    assert counts["duplicates"] == 3 and counts["conflicting_texts"] == 1
    assert counts["near_duplicates_removed"] == 3
    assert counts["rows"] == sum(map(len, parts.values())) + 6
    latest = {name: (part["time"].min(), part["time"].max()) for name, part in parts.items()}
    assert latest["train"][1] < latest["validation"][0] and latest["validation"][1] < latest["test"][0]
    assert len(parts["test"]) == math.ceil(0.2 * 303)
    tested = set(parts["test"]["text"])
    assert set(exact["text"]) <= tested and set(near["text"]) <= tested
    assert not (set(exact["text"]) | set(table["text"].iloc[[5, 6, 7]])) & set(parts["train"]["text"])
    copy = parts["test"].set_index("text").loc[past["text"].iloc[1]]
    assert copy["label"] == 1 and copy["row"] == 302  # the newest counts


@pytest.mark.parametrize(
    "write",
    [
        lambda t: t.isoformat(),
        lambda t: t.timestamp(),
        lambda t: int(t.timestamp() * 1000),
        lambda t: t.astimezone(tz=None).strftime("%Y-%m-%dT%H:%M:%S%z"),
        lambda t: (t + timedelta(hours=5)).strftime("%Y-%m-%d %H:%M+05:00"),
        lambda t: t.strftime("%Y-%m-%d %H:%M:%S"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_times_in_any_usual_form_give_the_same_splits(tmp_path, write, form):
    moments = [START + timedelta(hours=int(h)) for h in np.random.default_rng(0).permutation(100)]
    _, parts = prepared(rows(100, time=[write(t) for t in moments]), tmp_path, form)
    for name, part in parts.items():
        place = {text(i): t for i, t in enumerate(moments)}
        assert [place[t] for t in part["text"]] == part["time"].tolist()
        assert name != "test" or part["time"].min() == START + timedelta(hours=80)


def test_rows_without_a_time_are_counted_and_too_many_are_refused(tmp_path):
    times = [(START + timedelta(hours=i)).isoformat() for i in range(200)]
    counts, _ = prepared(rows(time=["soon", "31/12/2023", None, *times[3:]]), tmp_path)
    assert counts["untimed"] == 3
    with pytest.raises(ValueError, match=r"40 of 200 rows have no time.*'time', such as 'soon'.*time_field: null"):
        prepared(rows(time=[*["soon"] * 40, *times[40:]]), tmp_path)
    prepared(rows(time=["soon"] * 200), tmp_path, time_field=None)
    with pytest.raises(ValueError, match=r"no column 'created'; it has text, label: set time_field"):
        prepared(rows(), tmp_path, time_field="created")


def test_a_label_that_is_only_new_is_refused_by_name(tmp_path):
    table = rows(time=[(START + timedelta(hours=i)).isoformat() for i in range(200)])
    table.loc[190:, "label"] = "novel"
    with pytest.raises(ValueError, match=r"label 'novel' has 0 examples in the train split"):
        prepared(table, tmp_path)
    with pytest.raises(ValueError, match=r"label 'novel' has 0 examples in the test split.*raise test_share"):
        prepared(table.assign(time=table["time"].tolist()[::-1]), tmp_path)


# Labels


def test_labels_that_differ_in_case_or_spaces_are_one(tmp_path):
    table = rows()
    table.loc[[0, 2], "label"] = [" BAD ", "Bad"]
    table.loc[[1], "label"] = "GOOD"
    counts, parts = prepared(table, tmp_path)
    assert json.loads((tmp_path / "labels.json").read_text()) == ["bad", "good"] and counts["respelled"] == 3
    assert sum((part["label"] == 0).sum() for part in parts.values()) == 100
    prepared(table, tmp_path, labels=["Good", "BAD"])
    assert json.loads((tmp_path / "labels.json").read_text()) == ["Good", "BAD"]
    with pytest.raises(ValueError, match="two that differ only in case or spaces"):
        SentimentSettings(labels=["good", " Good"])


@given(st.lists(st.sampled_from(["a", "A", " a", "b", "B ", "ß", "SS", "c d", "C  d", "ﬁ", "fi"]), min_size=1))
def test_every_spelling_becomes_the_most_frequent_of_its_kind(labels):
    if len({fold(label) for label in labels}) < 2:
        return
    place, names, changed = indexed(pd.Series(labels), SentimentSettings(), Path("x.csv"))
    for label, i in zip(labels, place, strict=True):
        alike = [other for other in labels if fold(other) == fold(label)]
        assert names[i] in alike and alike.count(names[i]) == max(alike.count(other) for other in alike)
    assert changed == sum(names[i] != label for label, i in zip(labels, place, strict=True))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_none_and_na_are_labels_and_numbers_have_no_point(tmp_path, form):
    prepared(rows(label=[("None", "NA", "null")[i % 3] for i in range(200)]), tmp_path, form)
    assert json.loads((tmp_path / "labels.json").read_text()) == ["NA", "None", "null"]
    counts, _ = prepared(rows(label=[None, *(float(i % 2) for i in range(199))]), tmp_path, form)
    if form != "csv":  # a csv holds what was written
        assert json.loads((tmp_path / "labels.json").read_text()) == ["0", "1"]
    assert counts["empty"] == 1


def test_a_rare_label_is_refused_by_name_with_its_count(tmp_path):
    table = rows()
    table.loc[[7, 8, 9], "label"] = "odd"
    with pytest.raises(ValueError, match=r"'odd' has 3 examples in all, fewer than 5; add examples of it, merge it"):
        prepared(table, tmp_path)


def test_a_text_with_two_labels_is_counted_and_the_first_counts(tmp_path):
    table = rows()
    again = table.iloc[[4, 6]].assign(label="good")
    counts, parts = prepared(pd.concat([table, again]), tmp_path)
    assert counts["conflicting_texts"] == 2 and counts["duplicates"] == 2
    everything = pd.concat(parts.values()).set_index("text")
    assert everything.loc[table["text"][4], "label"] == 0 and everything.loc[table["text"][4], "row"] == 5


# Files

CELLS = st.one_of(
    st.none(),
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "NA", "1", "0.5", "-3", "inf", "2024-01-01", "2024-01-01T10:00:00+02:00", "soon", "a", "b"]
    ),
    st.integers(-5, 2**40),
    st.floats(),
)


ALL = ("text", "label", "sentiment", "time", "topic", "weight", "other")


@settings(max_examples=100, deadline=None)
@given(
    missing=st.sets(st.sampled_from(ALL), max_size=2),
    wild=st.sets(st.sampled_from(ALL), max_size=1),
    data=st.data(),
    form=st.sampled_from(["csv", "jsonl"]),
    encoding=st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16"]),
    count=st.integers(0, 80),
    repeated=st.integers(20, 80),
)
def test_a_wild_file_is_refused_by_name_or_split_without_leaks(
    tmp_path_factory, missing, wild, data, form, encoding, count, repeated
):
    folder = tmp_path_factory.mktemp("wild")
    path = folder / f"wild.{form}"
    names = [name for name in ALL if name not in missing]
    usual = {"text": text, "label": lambda i: "ab"[i % 2], "sentiment": lambda i: "ab"[i % 3 == 0], "weight": str}
    usual |= {"time": lambda i: f"2024-01-{1 + i % 28:02d}", "topic": lambda i: f"t{i % 3}", "other": str}
    table = [{name: usual[name](i % repeated) for name in names} for i in range(count)]
    for name in wild - missing:
        for i in data.draw(st.sets(st.integers(0, max(0, count - 1)), max_size=6)) if count else ():
            table[i][name] = data.draw(CELLS)
    if form == "csv":
        frame = pd.DataFrame(table, columns=names)
        content = frame.to_csv(index=False)
    else:
        content = "".join(json.dumps(row, ensure_ascii=data.draw(st.booleans())) + "\n" for row in table)
    path.write_bytes(content.encode(encoding, "replace"))
    try:
        counts = prepare(path, SentimentSettings(), folder)
    except ValueError as error:
        assert str(error).startswith(str(path)) and len(str(error)) > len(str(path)) + 10
        return
    parts = {split: pd.read_parquet(folder / f"{split}.parquet") for split in SPLITS}
    everything = pd.concat(parts.values())
    lost = sum(counts.get(name, 0) for name in ("empty", "untimed", "duplicates", "near_duplicates_removed"))
    assert counts["rows"] == len(everything) + lost
    assert everything["text"].is_unique and everything["row"].is_unique and everything["row"].between(1, count).all()
    assert all(t.strip() == t and t for t in everything["text"])
    labels = json.loads((folder / "labels.json").read_text())
    assert everything["label"].between(0, len(labels) - 1).all() and parts["train"]["label"].nunique() == len(labels)
    group = groups(everything["text"].tolist())
    split = np.repeat(SPLITS, [len(parts[s]) for s in SPLITS])
    assert all(len(set(split[group == g])) == 1 for g in set(group.tolist()))
    if "weight" in parts["train"]:
        weight = parts["train"]["weight"]
        assert np.isfinite(weight).all() and (weight >= 0).all() and weight.mean() == pytest.approx(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "x.csv has no column 'text'; it has none: set text_field"),
        ("text,label\n", "none of 0 rows has a text and a label"),
        ("text,label\na,b\n", "only the label"),
        ("text,label\na,b,c\nd,e,f\n", "row 1 has 3 fields, the header has 2; put texts with commas in quotes"),
        ("text,label\na,b\nd,e,f\n", "row 2 has 3 fields, the header has 2"),
        ("body,label\na,b\n", "no column 'text'; it has body, label: set text_field"),
        ("text,mood\na,b\n", "no column 'label'; it has text, mood: set label_field"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content, message):
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        prepare(path, SentimentSettings(), tmp_path)


def test_a_bad_line_of_json_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "007", "label": "01"}\n\n{"text": 1')
    with pytest.raises(ValueError, match="row 2 is not JSON"):
        read_table(path)
    path.write_bytes(b'\xef\xbb\xbf{"text": "007", "label": "01"}')
    assert read_table(path).to_dict("records") == [{"text": "007", "label": "01"}]  # nobody made numbers of them


def test_columns_must_be_distinct():
    with pytest.raises(ValueError, match="a column is named twice"):
        SentimentSettings(text_field="body", label_field="body")


# Weights


@pytest.mark.parametrize("wrong", ["heavy", "-1", "nan", "inf", ""])
def test_a_weight_that_is_none_is_refused_by_row(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"row 18: weight=.* is not a weight.*weight_field: null"):
        prepared(rows(weight=["1"] * 17 + [wrong] + ["1"] * 182), tmp_path)


def test_weights_that_leave_a_label_out_are_refused(tmp_path):
    with pytest.raises(ValueError, match="training examples of the label 'good' have weight 0"):
        prepared(rows(weight=[(i + 1) % 2 for i in range(200)]), tmp_path)


@pytest.mark.parametrize(("balance", "exponent"), [("none", 0), ("sqrt", 0.5), ("inverse", 1), ("auto", 0.5)])
def test_balance_and_weights_multiply_with_mean_one(balance, exponent):
    labels, given_weights = np.array([0] * 60 + [1] * 8), np.random.default_rng(0).random(68)
    part = weighted(
        pd.DataFrame({"label": labels}), ["a", "b"], given_weights, SentimentSettings(balance=balance), Path("x")
    )
    expected = np.array([(1 / (60, 8)[i]) ** exponent * w for i, w in zip(labels, given_weights, strict=True)])
    assert part["weight"].to_numpy() == pytest.approx(expected / expected.mean())


def test_without_need_there_are_no_weights():
    even = pd.DataFrame({"label": [0] * 50 + [1] * 10})
    assert "weight" not in weighted(even, ["a", "b"], None, SentimentSettings(), Path("x"))
    uneven = pd.DataFrame({"label": [0] * 51 + [1] * 10})
    assert "weight" in weighted(uneven, ["a", "b"], None, SentimentSettings(), Path("x"))


def test_the_weighted_loss_of_batches_is_that_of_the_whole():
    torch.manual_seed(0)
    module = Classifier(GPT2(ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=300)), 3).eval()
    generator = np.random.default_rng(0)
    tokens = [generator.integers(0, 300, 6).tolist() for _ in range(24)]
    labels, weights = generator.integers(0, 3, 24), generator.random(24)
    weights[:4] = 0
    data = TextDataset(tokens, labels, weights / weights.mean())
    batch = data.batch(range(24), 0)
    logits = module.logits(batch["ids"], batch["lengths"])
    each = F.cross_entropy(logits, batch["labels"], reduction="none").detach().double()
    expected = (each * torch.from_numpy(weights)).sum() / weights.sum()  # the weighted mean
    with torch.no_grad():
        whole = module(**batch)
        cut = torch.stack([module(**data.batch(range(i, i + 4), 0)) for i in range(0, 24, 4)]).mean()
        nothing = module(**data.batch(range(4), 0))
        alike = module(**TextDataset(tokens, labels).batch(range(24), 0))
    assert float(whole) == pytest.approx(float(expected), abs=1e-6) == pytest.approx(float(cut), abs=1e-6)
    assert float(nothing) == 0 and float(alike) == pytest.approx(float(each.mean()), abs=1e-6)


def test_texts_without_words_have_a_baseline():
    known = ["很好", "很好吃", "很坏", "坏透"] * 40
    found = tfidf_logistic_regression(
        [f"{t}{chr(0x4E00 + i)}" for i, t in enumerate(known)], np.array([1, 1, 0, 0] * 40), ["好"], 2
    )
    assert found.argmax(1).tolist() == [1]


# A real file


@pytest.fixture(scope="module")
def headlines(tmp_path_factory):
    """Financial headlines as three classes, the company as topic, a few labels turned around."""
    if not HEADLINES.exists():
        pytest.skip(f"the financial headlines are not here ({HEADLINES})")
    folder = tmp_path_factory.mktemp("headlines")
    table = pd.DataFrame(json.loads(HEADLINES.read_text()))
    mood = np.where(table["sentiment"] > 0.1, "positive", np.where(table["sentiment"] < -0.1, "negative", "neutral"))
    frame = pd.DataFrame({"text": table["title"], "label": mood, "topic": table["company"]})
    frame.to_csv(folder / "headlines.csv", index=False)
    kind = task("sentiment")
    return kind, folder, kind.prepare(kind.Settings(source="headlines.csv"), folder / "headlines.csv", folder), frame


def test_headlines_become_a_model_with_companies_as_parts_and_labels_to_look_at(headlines, tmp_path):
    from gpt2.evaluation import report

    kind, folder, counts, frame = headlines
    assert counts["rows"] == len(frame) == 1142
    labels = json.loads((folder / "labels.json").read_text())
    assert labels == ["negative", "neutral", "positive"]
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(frame["text"], 600)
    model = GPT2(ModelConfig(n_layer=1, n_head=2, n_embd=32, n_positions=64, vocab_size=600))
    module = kind.module(model, folder, tokenizer).train()
    data, optimizer = kind.dataset(folder, "train", tokenizer, 64), torch.optim.AdamW(module.parameters(), 4e-3)
    generator = np.random.default_rng(0)
    assert (data.weights is not None) == (max(np.bincount(data.labels)) > 5 * min(np.bincount(data.labels)))
    for step in range(60):
        module(**data.batch(generator.integers(len(data), size=32).tolist(), step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    saved, out = tmp_path / "model", tmp_path / "report"
    saved.mkdir(), out.mkdir()
    kind.save(module, folder, tokenizer, 64, saved)
    found = report.write(kind.evaluate(saved, folder, out), out)
    assert found["metrics"]["macro_f1"] > 1.2 * found["baselines"]["majority class"]["macro_f1"]
    topics = frame.set_index("text")["topic"]
    tested = pd.read_parquet(out / "predictions.parquet")
    assert tested["topic"].tolist() == [
        topics[t] if isinstance(topics[t], str) else topics[t].iloc[0] for t in tested["text"]
    ]
    common = tested["topic"].value_counts()
    shown = {s["slice"].removeprefix("topic: "): s["units"] for s in found["slices"] if s["slice"].startswith("topic")}
    assert shown == common[common >= 10].head(8).to_dict()
    [heading] = [h for h in found["tables"] if "label errors" in h]
    listed = found["tables"][heading]["rows"]
    losses = [float(row[0]) for row in listed]
    assert losses == sorted(losses, reverse=True) and 0 < len(losses) <= 20
    predictor = kind.predictor(saved)
    for loss, given_label, _, words, place in listed:
        split, row = place.split()
        assert split in ("test", "validation") and frame["text"][int(row) - 1].strip().startswith(words)
        assert frame["label"][int(row) - 1] == given_label
        [probabilities] = predictor.probabilities([frame["text"][int(row) - 1].strip()])
        assert float(loss) == pytest.approx(-math.log(probabilities[labels.index(given_label)]), abs=0.02)
    assert heading in (out / "report.html").read_text() and heading in (out / "report.md").read_text()
