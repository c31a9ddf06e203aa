"""Titles before texts, labels by other names, and the samples that are read so."""

from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from gpt2.data import samples
from gpt2.tasks.sentiment.config import SentimentSettings
from gpt2.tasks.sentiment.dataset import read_labelled
from tests.gpt2.tasks.sentiment.test_labelled import prepared, rows, text

NAMES = {"1": "recommended", "0": "not recommended"}


def test_a_title_stands_before_its_text(tmp_path):
    table = rows(4).assign(subject=["Late", None, " Fine ", ""])
    table.loc[2, "text"] = None
    table.to_csv(tmp_path / "a.csv", index=False)
    found, counts = read_labelled(tmp_path / "a.csv", SentimentSettings(title_field="subject"))
    assert found["text"].tolist() == [f"Late\n{text(0)}", text(1), "Fine", text(3)] and counts["empty"] == 0
    with pytest.raises(ValueError, match=r"no column 'title'; it has text, label, subject: set title_field"):
        read_labelled(tmp_path / "a.csv", SentimentSettings(title_field="title"))
    with pytest.raises(ValidationError, match="a column is named twice"):
        SentimentSettings(title_field="text")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_labels_have_the_names_that_were_given(tmp_path, form):
    """Numbers in the file, in any form; two labels by one name are one."""
    table = rows(200, label=[i % 3 for i in range(200)])
    plain, before = prepared(table, tmp_path, form)
    counts, splits = prepared(table, tmp_path, form, label_names={**NAMES, "2": "recommended"})
    assert counts["respelled"] == 0 and (plain["train"], plain["test"]) == (counts["train"], counts["test"])
    labels = pd.read_json(tmp_path / "labels.json")[0].tolist()
    assert labels == ["not recommended", "recommended"]
    for split, part in splits.items():
        assert (part["label"] == (before[split]["label"] > 0)).all() and part["label"].nunique() == 2
    with pytest.raises(ValueError, match=r"label_names has '3', which is the label of no row; use some of: 0, 1, 2"):
        prepared(table, tmp_path, form, label_names={"3": "x"})
    with pytest.raises(ValueError, match=r"labels \['recommended'\] that are not among"):
        prepared(table, tmp_path, form, label_names=NAMES | {"2": "x"}, labels=["x", "not recommended"])


def test_a_sample_is_read_by_its_columns_unless_others_are_named():
    found = SentimentSettings(source="sample:clothing")
    assert (found.text_field, found.title_field, found.label_names) == ("Review Text", "Title", NAMES)
    assert SentimentSettings(source="sample:clothing", title_field=None).title_field is None
    for source in ("sample:posts", "clothing.csv"):
        assert SentimentSettings(source=source) == SentimentSettings().model_copy(update={"source": source})
    assert SentimentSettings.model_validate(found.model_dump()) == found
    for name, known in samples.COLUMNS.items():
        assert name in samples.SAMPLES and set(known) <= set(SentimentSettings.model_fields)


@pytest.mark.slow
def test_the_reviews_of_clothes_are_labelled_texts(tmp_path):
    source = Path(samples.resolve("sample:clothing", tmp_path))
    raw = pd.read_parquet(source)
    found, counts = read_labelled(source, SentimentSettings(source="sample:clothing"))
    assert counts["rows"] == len(raw) == 23486
    neither = raw["Title"].isna() & raw["Review Text"].isna()
    assert counts["empty"] == neither.sum()
    assert (found["label"] == "recommended").sum() == raw.loc[~neither, "Recommended IND"].sum()
    first = raw[raw["Title"].notna() & raw["Review Text"].notna()].iloc[0]
    assert found["text"][first.name] == f"{first['Title'].strip()}\n{first['Review Text'].strip()}"
    assert found["topic"].value_counts().idxmax() == "Tops"
