"""The texts to label next, and their labels back in the file that a classifier learns from."""

import json
import random

import numpy as np
import pandas as pd
import pytest

from gpt2.tasks.sentiment import labelling
from gpt2.tasks.sentiment.config import LabelledFile
from gpt2.tasks.sentiment.dataset import read_labelled
from tests.conftest import sentence


def posts(n: int = 60) -> pd.DataFrame:
    generator = random.Random(0)
    texts = [sentence(generator, 8) for _ in range(n)]
    facts = {"topic": ["air", "sea"] * (n // 2), "suggested": "negative", "confidence": 0.9, "unsure": 0.2}
    return pd.DataFrame({"text": texts, **facts})


def test_the_unsure_are_chosen_and_of_many_alike_few():
    table = posts()
    table.loc[10:19, ["text", "unsure", "confidence"]] = ["where is my bag and when does the flight leave", 0.9, 0.55]
    table.loc[10:19, "text"] += [f" {i}" for i in range(10)]
    table.loc[30:34, "unsure"] = 0.8
    found = labelling.choose(table, [], 6)
    assert set(table.loc[30:34, "text"]) < set(found["text"]) and len(found) == 6  # and one of the ten alike
    assert list(found.columns) == list(labelling.COLUMNS) and (found["label"] == "").all()
    assert found["topic"].is_monotonic_increasing and (found["why"] == "the model is unsure").all()


def test_what_is_known_is_left_out_and_what_is_new_comes_first():
    table = posts()
    known = table["text"][:40].tolist()
    table.loc[50, "text"] = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich"
    table.loc[51, "text"] = table.loc[52, "text"] = "@one see https://a.example/1"  # the same text to the model
    found = labelling.choose(table, known, 60)
    assert not set(found["text"]) & set(known) and len(found) == 19
    first = labelling.choose(table, known, 1)["text"].item()
    assert first == table.loc[50, "text"]
    assert found.set_index("text").loc[first, "why"] == "unlike the training texts"
    assert labelling.choose(table[:40], known, 5).empty


def test_a_label_that_the_model_contradicts_is_asked_about_and_others_are_not():
    table = posts().assign(label=["positive", "negative"] * 30)
    found = labelling.choose(table, [], 60)
    assert set(found["text"]) == set(table["text"][::2])
    assert (found["why"] == "its label is in doubt: positive").all()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_labels_come_back_into_the_file_that_is_learned_from(tmp_path, suffix):
    source, asked, settings = tmp_path / f"mine{suffix}", tmp_path / "asked.csv", LabelledFile(text_field="post")
    have = pd.DataFrame({"id": [1, 2], "post": ["a, b", "c"], "label": ["pos", "neg"], "time": ["2026-01-01"] * 2})
    if suffix == ".csv":
        source.write_text(have.to_csv(index=False).rstrip("\n"))  # without an end of line
    elif suffix == ".jsonl":
        have.to_json(source, orient="records", lines=True)
    else:
        have.to_parquet(source)
    before = source.read_bytes()
    filled = labelling.choose(posts().assign(text=["c", '"so", he said\nß', *posts()["text"][2:]]), [], 60)
    filled.loc[filled["text"] == "c", "label"] = "neg"
    filled.loc[filled["text"].str.startswith('"so"'), "label"] = "pos"
    filled.to_csv(asked, index=False)
    for added in (1, 0):  # what is there is not added again
        assert labelling.add(asked, source, settings, "2026-12-01T00:00:00+00:00") == added
    table, counts = read_labelled(source, settings)
    assert table["text"].tolist() == ["a, b", "c", '"so", he said\nß'] and table["label"].tolist() == [
        "pos",
        "neg",
        "pos",
    ]
    assert counts["rows"] == 3 and table["time"].iloc[-1] == pd.Timestamp("2026-12-01", tz="UTC")
    assert suffix == ".parquet" or source.read_bytes().startswith(before)


def test_a_file_without_labels_is_refused(tmp_path):
    asked = tmp_path / "asked.csv"
    labelling.choose(posts(), [], 5).to_csv(asked, index=False)
    with pytest.raises(ValueError, match="no row has a label; fill in the column label"):
        labelling.labelled(asked)
    asked.write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match="give the file that gpt2 label wrote"):
        labelling.labelled(asked)


def test_the_margin_is_of_the_two_likeliest():
    assert labelling.margin(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.2, 0.6]])) == pytest.approx([1, 0, 0.6])
