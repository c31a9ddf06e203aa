"""Written reasons: from made-up reviews and a catalogue to a report; splits, prompts and losses by other means."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import bootstrap

from flows.config import preset_names, resolve
from gpt2.data.splits import content_digest, is_validation
from gpt2.data.text import words
from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation import report
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.tasks.reasons.checks import place_of, spoken_title
from gpt2.tasks.reasons.dataset import (
    Audience,
    collected,
    common_words,
    read,
    related,
    speaking_against,
    usable,
    words_of,
)
from gpt2.tasks.reasons.predictor import losses
from gpt2.tasks.reasons.report import writing_report
from gpt2.tasks.recommendation.catalogue import attributes, named_in
from gpt2.tasks.task import task

KIND = task("reasons")
CONTEXT = 96
PRAISE = ["funny", "warm", "clever", "quiet", "bright", "tender", "lively", "honest"]
GENRES = ["comedy", "drama", "western"]


def reviews() -> pd.DataFrame:
    rows = []
    for i, first in enumerate(PRAISE):
        for j, second in enumerate(PRAISE):
            genre = GENRES[(i + j) % 3]
            rows.append((f"We saw it. This film is a {first} and {second} {genre}. Al Ros is in it.", 1))
            rows.append((f"The movie has a {first} heart and a {second} end! I left {i + j} times.", 1))
            rows.append((f"This film is a {first} but awful {genre} of {second} people.", 0))
    return pd.DataFrame(rows, columns=["text", "label"])


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    out = tmp_path_factory.mktemp("reasons")
    reviews().to_csv(out / "reviews.csv", index=False)
    films = out / "films"
    films.mkdir()
    items = [(str(i), f"Film {'ABCDEFGHIJKL'[i]}, The ({1980 + i})", GENRES[i % 3].capitalize()) for i in range(12)]
    pd.DataFrame(items, columns=["item", "title", "text"]).to_csv(films / "items.csv", index=False)
    events = [(u, (u + s * (1 + u % 2)) % 12, 100 * u + s) for u in range(5) for s in range(6)]
    pd.DataFrame(events, columns=["user", "item", "time"]).to_csv(films / "interactions.csv", index=False)
    return out


def settings(sources, **changes):
    return KIND.Settings(
        source=str(sources / "reviews.csv"),
        catalogue=str(sources / "films"),
        test_share=0.2,
        validation_share=0.1,
        **changes,
    )


@pytest.fixture(scope="module")
def examples(sources, tmp_path_factory):
    out, own = tmp_path_factory.mktemp("examples"), settings(sources)
    return out, KIND.prepare(own, sources / "reviews.csv", out)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(reviews()["text"], 320)


@pytest.fixture(scope="module")
def saved(examples, tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    model = GPT2(ModelConfig(n_layer=1, n_head=2, n_embd=32, n_positions=128, vocab_size=320))
    out = tmp_path_factory.mktemp("model")
    KIND.save(KIND.module(model, examples[0], tokenizer), examples[0], tokenizer, CONTEXT, out)
    return out


def test_sentences_are_told_of_items_that_they_are_right_of(examples):
    out, counts = examples
    items, asked = pd.read_parquet(out / "items.parquet"), pd.read_parquet(out / "asked.parquet")
    of, against = attributes(items["text"].tolist()), json.loads((out / "settings.json").read_text())["unwanted"]
    assert "awful" in against and "funny" not in against and counts["good_texts"] == 2 * len(PRAISE) ** 2
    known, seen = {name for each in of for name in each}, {}
    texts = reviews().query("label == 1")["text"]
    for split in ("train", "validation", "test"):
        table = pd.read_parquet(out / f"{split}.parquet")
        assert len(table) == counts[split] > 0
        for row in table.itertuples():
            assert re.match(r"This film is a \w+ and|The movie has", row.text) and "Al" not in row.text
            assert (
                named_in(row.text, known) <= set(of[row.item]) and row.item not in row.liked and 0 < len(row.liked) <= 2
            )
            assert seen.setdefault(row.text, split) == split
        if split == "train":
            told = table[table["text"].str.contains("|".join(GENRES))].groupby("text").size()
            assert (told == 8).all() and (table.groupby("text").size().drop(told.index) == 1).all()
    held_out = [text for text in texts if is_validation(content_digest(text), 0.2)]
    assert {s for s in seen if seen[s] == "test"} == {
        sentence for text in held_out for sentence in re.findall(r"(?:This film|The movie)[^.!]*[.!]", text)
    }
    assert len(asked) == counts["users"] == 5


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("<br />This film is a warm, quiet one.<br /><br />It is not.", ["This film is a warm, quiet one."]),
        ("this film is a warm and quiet one.", []),
        ("This film is a warm 1980 one.", []),
        ("This is a warm and quiet one. This goes to you and you.", ["This is a warm and quiet one."]),
        ("The film-making is warm and quiet here.", []),
        ("I saw this film and liked it.", []),
    ],
)
def test_what_of_a_text_is_learned(text, sentences):
    assert usable(text, place_of(["this film", "the film", "this|is"])) == sentences


def test_what_is_learned_has_allowed_words_alone_and_the_test_is_as_people_write():
    rows = [(f"This film is a {a} and {b} one.", a != "bright") for a in PRAISE for b in PRAISE if a != b]
    texts = pd.DataFrame(rows, columns=["text", "good"])
    allowed = set(words(" ".join(texts["text"]))) - {"quiet"}
    found = collected(texts, ["this film"], allowed, (0.3, 0.2)).groupby("split")["text"].agg(set)
    held_out = {t for t, good in rows if good and is_validation(content_digest(t), 0.3)}
    texts["text"] += " So."  # other texts with the same sentences, each in a split of its own
    both = collected(
        pd.concat([texts, pd.DataFrame(rows, columns=["text", "good"])]), ["this film"], allowed, (0.3, 0.2)
    )
    later = {t for t, good in rows if good and is_validation(content_digest(f"{t} So."), 0.3)}
    learnable = {t for t in held_out ^ later if "quiet" not in t}
    assert set(both["text"][both["split"] == "test"]) == (held_out | later) - learnable
    assert found["test"] == held_out and any("quiet" in text for text in held_out)
    assert found["train"] | found["validation"] == {t for t, good in rows if good and "quiet" not in t} - held_out


def test_words_against_are_those_of_bad_texts():
    rows = [("warm", True)] * 30 + [("cold", False)] * 30 + [("both", True), ("both", False)] * 20 + [("rare", False)]
    assert speaking_against(pd.DataFrame(rows, columns=["text", "good"])) == {"cold"}
    assert speaking_against(pd.DataFrame(rows[:30], columns=["text", "good"])) == set()


def test_common_words_are_in_a_share_of_good_texts():
    rows = [("warm film", True)] * 3 + [("warm", True)] * 7 + [("cold", False)] * 10
    texts = pd.DataFrame(rows, columns=["text", "good"])
    assert common_words(texts, 0.3) == {"film", "warm"} and common_words(texts, 0.31) == {"warm"}
    kinds = words_of(attributes(["Film-Noir, comedy"] * 2))
    assert kinds == {"comedies", "comedy", "film", "films", "noir", "noirs"}


def test_related_is_what_has_most_in_common_then_the_latest():
    of = attributes(["a, b", "a", "a, b", "b, a", "c", "c"])
    assert related([1, 3, 4, 2], 0, of, 3) == [2, 3, 1]
    readers = Audience([[0, 1], [5, 4]], of, 2)
    generator = np.random.default_rng(0)
    assert {readers.draw("of c", generator)[0] for _ in range(20)} == {4, 5}
    assert readers.draw("of a and b", generator) == (0, [1])
    assert Audience([[0, 1]], of, 2).draw("of c", generator) is None


def test_unusable_files_are_refused_with_a_remedy(sources, tmp_path):
    file = sources / "reviews.csv"
    for changes, match in (
        ({"label_field": "stars"}, "no column 'stars'.*set label_field"),
        ({"good_label": "yes"}, "set label_field and good_label"),
        ({"standing": ["the play"]}, "of 0 sentences .* set standing"),
    ):
        with pytest.raises(ValueError, match=match):
            KIND.prepare(settings(sources, **changes), file, tmp_path)
    with pytest.raises(ValueError, match="context=32 leaves no room"):
        settings(sources, train={"steps": 1, "context": 32})
    with pytest.raises(ValueError, match=r"test_share=0.4 and validation_share=0.3 leave less"):
        KIND.Settings(test_share=0.4, validation_share=0.3)
    texts, counts = read(file, settings(sources, texts_field="text", label_field=None))
    assert texts["good"].all() and counts["texts"] == 3 * len(PRAISE) ** 2


def test_the_loss_is_that_of_each_sentence_alone(examples, tokenizer):
    out, _ = examples
    torch.manual_seed(0)
    module = KIND.module(
        GPT2(ModelConfig(n_layer=2, n_head=2, n_embd=16, n_positions=128, vocab_size=320)), out, tokenizer
    )
    data = KIND.dataset(out, "validation", tokenizer, CONTEXT)
    nll, tokens = losses(module, data)
    for i in range(4):
        ids = torch.tensor([data.prompts[i] + data.sentences[i]])
        with torch.inference_mode():
            logs = module.model.logits(module.model.hidden(ids))[0].log_softmax(-1)
        start = len(data.prompts[i])
        expected = -sum(float(logs[start + k - 1, t]) for k, t in enumerate(data.sentences[i]))
        assert nll[i] == pytest.approx(expected, rel=1e-5) and tokens[i] == len(data.sentences[i])
        assert data.sentences[i][-1] == tokenizer.end_of_text
    mean = np.mean(np.divide(nll, tokens)[:5])
    assert module(**data.batch(range(5), 0)).item() == pytest.approx(mean, rel=1e-5)
    told = tokenizer.decode(data.prompts[0])
    row = pd.read_parquet(out / "validation.parquet").iloc[0]
    items = pd.read_parquet(out / "items.parquet")
    assert (
        told.endswith(".\n")
        and f"Next: {spoken_title(items['title'][row['item']])} ({items['text'][row['item']]})" in told
    )


def test_the_report_is_what_the_predictor_says(examples, saved, tmp_path):
    found = KIND.evaluate(saved, examples[0], tmp_path)
    report.write(found, tmp_path)
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    metrics, tokens = found["metrics"], table["tokens"].sum()
    assert metrics["perplexity"] == pytest.approx(math.exp(table["nll"].sum() / tokens))
    assert metrics["bits_per_byte"] == pytest.approx(table["nll"].sum() / math.log(2) / table["bytes"].sum())
    reader = KIND.predictor(saved).reader
    for split, name in (("train", "training"), ("test", "held-out")):
        rows = pd.read_parquet(examples[0] / f"{split}.parquet")
        long = [len(reader.tokenizer.encode(text)) >= reader.room for text in rows["text"]]
        assert found["cut"][f"{name} sentences"] == {"texts": len(rows), "cut": sum(long), "tokens": reader.room}
        shown = [len(reader.whole(item, liked)) for item, liked in zip(rows["item"], rows["liked"], strict=True)]
        assert found["cut"][f"{name} prompts"]["cut"] == sum(length > reader.room for length in shown)
    counts = found["tables"]["Outcomes of the written sentences"]["rows"]
    assert found["counts"]["users"] == 5 and 5 < sum(n for _, n in counts) <= 40
    predictor, asked = KIND.predictor(saved), pd.read_parquet(examples[0] / "asked.parquet")
    records = [
        {"item": predictor.titles[i], "history": [predictor.titles[j] for j in liked[::-1]]}
        for i, liked in zip(asked["item"], asked["liked"], strict=True)
    ]
    told = predictor.predict(records[:2], {})
    assert predictor.predict(records[1], {}).iloc[0].tolist() == told.iloc[1].tolist()  # whatever is asked with it
    written = pd.read_parquet(tmp_path / "written.parquet")
    assert told["withheld"][0] == written["withheld"][0] and len(written) == sum(n for _, n in counts)
    runs = predictor.checks.known.longest(written["text"].tolist())
    users = (written["item"].diff() != 0).cumsum().to_numpy()
    assert users.max() == found["counts"]["users"]
    sums, sizes = np.bincount(users, runs)[1:], np.bincount(users)[1:]
    drawn = bootstrap(
        (sums, sizes), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, method="BCa", n_resamples=9999, rng=0
    )
    theirs = drawn.confidence_interval
    assert metrics["longest_copy"] == pytest.approx(runs.mean()) and metrics["longest_copy_max"] == runs.max()
    assert found["intervals"]["model"]["longest_copy"] == pytest.approx([theirs.low, theirs.high], abs=0.05)
    assert metrics["shown"] == 0 and (written["withheld"] != "").all() and told["reason"].tolist() == ["", ""]


def test_what_passes_is_shown_and_counted(examples, saved):
    """A model that says what it learned by heart, but for one word, is told apart from one that copies."""
    predictor = KIND.predictor(saved)
    learned = [json.loads(line)["text"] for line in (saved / "learned.jsonl").read_text().splitlines()]
    assert all(predictor.checks.known.longest([text])[0] == len(re.findall(r"\w+", text)) for text in learned[:5])
    item = next(i for i, each in enumerate(predictor.of) if ("drama",) in each)
    other = next(i for i, each in enumerate(predictor.of) if ("drama",) not in each)
    from gpt2.tasks.reasons.checks import Written

    good = Written("This film is a warm, bright and quiet drama.", True, 4.0)
    pairs = [(item, [other, item]), (other, [item])]
    written = [[(good, predictor.checks.withheld(good, i, liked))] for i, liked in pairs]
    assert [group[0][1] for group in written] == ["", "it says what the item is not"]
    assert predictor.checks.withheld(good._replace(perplexity=5.1), *pairs[0]) == "it is unlikely"
    told = writing_report(predictor, pairs, written, learned, {"loss": 1.0}, {"model": {"loss": [0.9, 1.1]}})
    assert told["intervals"]["model"].keys() == told["metrics"].keys() - {"longest_copy_max"}
    assert told["metrics"]["shown"] == 0.5 and told["metrics"]["attribute_right"] == 0.5
    assert told["metrics"]["attribute_right_by_chance"] == 0.5 and told["metrics"]["names_item"] == 1
    after = f"after {predictor.titles[other]}; {predictor.titles[item]}"
    assert told["samples"]["Reasons"] == [
        f"{after} → {spoken_title(predictor.titles[item])} is a warm, bright and quiet drama."
    ]


def test_what_cannot_be_asked_is_refused(saved):
    predictor = KIND.predictor(saved)
    for record, match in (
        ({"history": []}, 'give {"history"'),
        ({"history": ["x"], "item": "0"}, "'x', which is not in the catalogue"),
    ):
        with pytest.raises(ValueError, match=match):
            predictor.predict([record], {})
    with pytest.raises(ValueError, match="samples=0"):
        predictor.predict([{"history": ["0"], "item": "1"}], {"samples": 0})
    told = predictor.predict([{"history": [], "item": "1"}], {})
    assert told.iloc[0].tolist() == ["", "nothing that was liked is known"]


@pytest.mark.parametrize("preset", preset_names())
def test_it_is_off_until_it_is_asked_for_and_fits_every_preset(preset):
    assert "reasons" not in resolve(preset).task_settings()
    assert "reasons" in resolve(preset, None, ["tasks.reasons.enabled=true"]).task_settings()


def test_a_champion_of_another_catalogue_is_told_of_the_new_items(examples, saved, tmp_path):
    """Items came, and all have other places: the same sentences are as likely as they were."""
    items = pd.read_parquet(examples[0] / "items.parquet")
    places = 3 + np.random.default_rng(0).permutation(len(items))  # where each is now
    moved = items.iloc[np.argsort(places)]
    new = moved.head(3).assign(item=["x1", "x2", "x3"], title=["X1", "X2", "X3"])
    found = {}
    for name in ("old", "new"):
        folder, out = tmp_path / name, tmp_path / f"report of {name}"
        folder.mkdir(), out.mkdir()
        for table in ("train", "test", "asked"):
            rows = pd.read_parquet(examples[0] / f"{table}.parquet")
            rows = rows.head(2) if table == "asked" else rows
            if name == "new":
                liked = [places[np.asarray(each, dtype=int)].tolist() for each in rows["liked"]]
                rows = rows.assign(item=places[rows["item"]], liked=liked)
            rows.to_parquet(folder / f"{table}.parquet", index=False)
        (pd.concat([new, moved]) if name == "new" else items).to_parquet(folder / "items.parquet", index=False)
        KIND.evaluate(saved, folder, out)
        found[name] = pd.read_parquet(out / "predictions.parquet")
    assert len(found["old"]) > 5 and not found["old"]["item"].equals(found["new"]["item"])
    for column in ("nll", "tokens"):
        assert found["new"][column].to_numpy() == pytest.approx(found["old"][column].to_numpy(), rel=1e-5)
