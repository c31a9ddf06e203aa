"""Each task from a small made-up data file to a report; and what must never leak does not."""

import json
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from gpt2.data.near_duplicates import jaccard, shingles
from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation import report
from gpt2.evaluation.behavioural_tests import DIRECTION, INVARIANCE, MINIMUM
from gpt2.evaluation.metrics import calibration_error
from gpt2.model.config import ModelConfig
from gpt2.model.heads import pad
from gpt2.model.transformer import GPT2
from gpt2.tasks.recommendation.dataset import load_examples
from gpt2.tasks.recommendation.report import TESTED
from gpt2.tasks.task import task, tasks

CONTEXT = 48
SAVED = {"config.json", "model.safetensors", "head.safetensors", "tokenizer.json", "task.json"}
SUBJECTS = ["crew", "meal", "seat", "delay", "price", "gate", "bag", "screen", "engine", "coffee", "staff", "website"]
VERDICTS = {
    "negative": ["awful", "rude", "broken", "late", "lost"],
    "positive": ["lovely", "quick", "kind", "great", "warm"],
}


def texts():
    generator = np.random.default_rng(0)
    rows = []
    for i in range(400):
        label = ("negative", "positive")[i % 2]
        words = [*generator.choice(VERDICTS[label], 3), *generator.choice(SUBJECTS, 4)]
        rows.append((" ".join(generator.permutation(words)), label))
    rows += [(f"@user{i} the {rows[i][0]}!! http://t.co/{i}", rows[i][1]) for i in range(60)]  # near-duplicates
    return pd.DataFrame(rows, columns=["text", "sentiment"])


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train((" ".join(row) for row in texts().itertuples(index=False)), 320)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT2(ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=320))


@pytest.fixture(scope="module")
def posts(tmp_path_factory):
    out = tmp_path_factory.mktemp("posts")
    texts().to_csv(out / "posts.csv", index=False)
    kind = task("sentiment")
    counts = kind.prepare(kind.Settings(), out / "posts.csv", out)
    return kind, out, counts


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """40 users walk through 30 films, mostly to the next one; all at the same few seconds."""
    source, out = tmp_path_factory.mktemp("views"), tmp_path_factory.mktemp("examples")
    generator, rows = np.random.default_rng(0), []
    for user in range(40):
        at, seen = int(generator.integers(30)), set()
        for second in range(int(generator.integers(5, 20))):
            if at not in seen:
                seen.add(at)
                rows.append((f"u{user}", f"f{at}", second // 3))
            at = (at + int(generator.choice([1, 1, 1, 5]))) % 30
    pd.DataFrame(rows, columns=["user", "item", "time"]).to_csv(source / "interactions.csv", index=False)
    films = [(f"f{i}", f"Film number {i}", "Drama" if i % 2 else "Comedy") for i in range(30)]
    pd.DataFrame(films, columns=["item", "title", "text"]).to_csv(source / "items.csv", index=False)
    kind = task("recommendation")
    counts = kind.prepare(kind.Settings(), source, out)
    return kind, source, out, counts


def trained(kind, model, examples, tokenizer, steps=15):
    """The task's module after a few steps."""
    module = kind.module(model, examples, tokenizer).train()
    data, optimizer = kind.dataset(examples, "train", tokenizer, CONTEXT), torch.optim.AdamW(module.parameters(), 3e-3)
    generator, losses = np.random.default_rng(0), []
    for step in range(steps):
        loss = module(**data.batch(generator.integers(len(data), size=16).tolist(), step))
        assert loss.shape == () and loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    return module


def stored(kind, written, out):
    """The stored predictions give the report's metrics and intervals again."""
    found = kind.unit_results(pd.read_parquet(out / "predictions.parquet"))
    again = json.loads(json.dumps(found.summary()))
    for system, intervals in again.pop("intervals").items():
        assert intervals.items() <= written["intervals"][system].items()
    assert {name: written[name] for name in again} == again
    assert {m for m, v in written["metrics"].items() if isinstance(v, float)} == set(written["intervals"]["model"])
    values = {s: written["baselines"].get(s, written["metrics"]) for s in found.systems}
    for system, metrics in values.items():
        for metric in found.metrics:
            assert found.value(metric, system) == pytest.approx(metrics[metric])
            low, high = written["intervals"][system][metric]
            assert low <= high


def before_the_temperature(predictor, test, written):
    """The interval of the calibration error without a temperature, drawn again in a loop."""
    truth, found = test["label"].to_numpy(), predictor.probabilities(test["text"].tolist())
    generator, value = np.random.default_rng(1), calibration_error(truth, found)
    draws = (generator.integers(len(truth), size=len(truth)) for _ in range(2000))
    low, high = np.quantile([calibration_error(truth[chosen], found[chosen]) for chosen in draws], [0.025, 0.975])
    expected = [max(0.0, 2 * value - high), max(0.0, 2 * value - low)]
    assert written["metrics"]["calibration_error_before"] == pytest.approx(value)
    assert written["intervals"]["model"]["calibration_error_before"] == pytest.approx(expected, abs=0.02)


def test_every_task_is_listed_with_valid_defaults():
    assert list(tasks()) == sorted(tasks()) and {"sentiment", "recommendation"} <= set(tasks())
    for kind in tasks().values():
        assert kind.Settings().source.startswith("sample:")
    with pytest.raises(ValueError, match="the tasks are: reasons, recommendation, sentiment"):
        task("translation")


# Sentiment


def test_sentiment_splits_hold_every_text_once(posts):
    _, out, counts = posts
    parts = {s: pd.read_parquet(out / f"{s}.parquet") for s in ("train", "validation", "test")}
    assert {s: len(p) for s, p in parts.items()} == {s: counts[s] for s in parts}
    everything = pd.concat(parts.values())["text"]
    assert everything.is_unique and counts["rows"] == len(everything) + counts["duplicates"] + counts["empty"]
    assert counts["near_duplicates_kept_together"] >= 50


def test_no_near_duplicate_crosses_splits(posts):
    _, out, _ = posts
    marks = {s: [shingles(t) for t in pd.read_parquet(out / f"{s}.parquet")["text"]] for s in ("train", "test")}
    closest = max(jaccard(a, b) for a in marks["test"] for b in marks["train"])
    assert closest < 0.7


def test_preparing_twice_gives_the_same_splits(posts, tmp_path):
    kind, out, _ = posts
    kind.prepare(kind.Settings(), out / "posts.csv", tmp_path)
    for split in ("train", "validation", "test"):
        assert (tmp_path / f"{split}.parquet").read_bytes() == (out / f"{split}.parquet").read_bytes()


def test_sentiment_from_examples_to_report(posts, model, tokenizer, tmp_path):
    kind, examples, _ = posts
    module = trained(kind, model, examples, tokenizer)
    saved, out = tmp_path / "model", tmp_path / "report"
    saved.mkdir(), out.mkdir()
    kind.save(module, examples, tokenizer, CONTEXT, saved)
    assert {p.name for p in saved.iterdir()} == SAVED | {"ngrams.safetensors"}
    predictor = kind.predictor(saved)
    asked = ["lovely crew", "awful seat, awful meal", "kind " * 500]
    answers = predictor.predict(asked, {})
    probabilities = answers[["probability_negative", "probability_positive"]].to_numpy()
    assert probabilities.sum(1) == pytest.approx(1)
    assert answers["label"].tolist() == [predictor.labels[i] for i in probabilities.argmax(1)]
    module.eval()
    data = kind.dataset(examples, "validation", tokenizer, 64)
    batch = data.batch(range(4), 0)
    expected = (module.logits(batch["ids"], batch["lengths"], batch["ngrams"]) / predictor.temperature).softmax(-1)
    validation = pd.read_parquet(examples / "validation.parquet")["text"].tolist()[:4]
    # bf16 where the CPU has it
    assert predictor.probabilities(validation) == pytest.approx(expected.detach().numpy(), abs=5e-3)
    least = float(probabilities.max(1).mean())
    unsure = predictor.predict(asked, {"abstain_below": least})["label"].tolist()
    known = zip(answers["label"], probabilities.max(1), strict=True)
    assert unsure == [label if confidence >= least else "" for label, confidence in known] and "" in unsure
    with pytest.raises(ValueError, match=r"abstain_below=1\.5 is not a probability"):
        predictor.predict(asked, {"abstain_below": 1.5})
    facts = json.loads((saved / "task.json").read_text())
    assert facts.pop("temperature") == predictor.temperature
    written = report.write(kind.evaluate(saved, examples, out), out)
    (saved / "task.json").write_text(json.dumps(facts))  # one that was saved before there were temperatures
    assert kind.predictor(saved).temperature == 1
    assert "Behavioural tests" in written["tables"] and written["cost"]["latency_ms"] > 0
    assert any("read as 'http' and '@user'" in remark for remark in written["remarks"])
    stored(kind, written, out)
    held_out = pd.read_parquet(examples / "test.parquet")
    before_the_temperature(kind.predictor(saved), held_out, written)
    for row in written["selective"]:  # what the table promises is what the setting does
        told = predictor.predict(held_out["text"].tolist(), {"abstain_below": row["abstain_below"]})["label"]
        kept = told != ""
        names = held_out["label"].map(dict(enumerate(predictor.labels)))
        assert kept.sum() == row["texts"] and (told == names)[kept].mean() == pytest.approx(row["accuracy"])
    whole = written["selective"][0]
    assert (whole["abstain_below"], whole["coverage"]) == (0, 1) and len(written["selective"]) > 2
    assert whole["macro_f1"] == written["metrics"]["macro_f1"]
    assert written["cut"]["training texts"] == {"texts": written["counts"]["train"], "cut": 0, "tokens": CONTEXT}
    assert written["cut"]["held-out texts"]["tokens"] == 64
    assert kind.primary in written["metrics"] and tuple(written["baselines"]) == kind.baselines
    assert len(pd.read_parquet(out / "predictions.parquet")) == written["counts"]["test"]
    assert {f["file"] for f in written["figures"]} <= {p.name for p in out.iterdir()}


def test_a_champion_with_a_linear_part_is_measured_on_examples_without_one(posts, model, tokenizer, tmp_path):
    """The examples' column is of the model that learned from them, and gone with `ngrams=false`."""
    kind, examples, _ = posts
    saved = tmp_path / "model"
    saved.mkdir()
    kind.save(kind.module(model, examples, tokenizer), examples, tokenizer, CONTEXT, saved)
    other = shutil.copytree(examples, tmp_path / "other")
    told = []
    for column in ("as it is", None, "of another model"):
        for split in ("train", "validation", "test"):
            table = pd.read_parquet(examples / f"{split}.parquet")
            if column is None:
                table = table.drop(columns="ngrams")
            elif column == "of another model":
                table["ngrams"] = [-logits for logits in table["ngrams"]]
            table.to_parquet(other / f"{split}.parquet", index=False)
        out = tmp_path / f"report of {column}"
        out.mkdir()
        told.append([r for r in kind.evaluate(saved, other, out)["remarks"] if r.startswith("Its linear model")])
    assert len(told[0]) == 1 and told[0] == told[1] == told[2]


def test_a_champion_of_other_labels_is_measured_beside_a_version_of_the_new_ones(posts, model, tokenizer, tmp_path):
    """A label was added, one renamed, and so all have other places: what it calls by the same name still counts."""
    kind, examples, _ = posts
    names = {"old": examples, "new": tmp_path / "examples"}
    names["new"].mkdir()
    table = texts()
    angry = table["text"].str.contains("rude") & (table["sentiment"] == "negative")
    table["sentiment"] = table["sentiment"].replace("positive", "a good one").where(~angry, "angry")
    table.to_csv(tmp_path / "posts.csv", index=False)
    kind.prepare(kind.Settings(), tmp_path / "posts.csv", names["new"])
    found, predictions = {}, {}
    for name, learned in names.items():
        saved, out = tmp_path / name, tmp_path / f"report of {name}"
        saved.mkdir(), out.mkdir()
        kind.save(kind.module(model, learned, tokenizer), learned, tokenizer, CONTEXT, saved)
        kind.evaluate(saved, names["new"], out)
        predictions[name] = pd.read_parquet(out / "predictions.parquet")
        found[name] = kind.unit_results(predictions[name])
    both = found["new"].against(found["old"], "champion")  # the same units, by the same labels
    assert both.value("macro_f1", "champion") < both.value("macro_f1")
    labels = json.loads((names["new"] / "labels.json").read_text())
    assert labels == ["a good one", "angry", "negative"]
    own = kind.predictor(tmp_path / "old").probabilities(predictions["old"]["text"].tolist())
    old = predictions["old"][[f"probability_{label}" for label in labels]].to_numpy()
    assert old[:, 2] == pytest.approx(own[:, 0], abs=1e-6) and (old[:, :2] < 1e-9).all()


def test_names_and_links_are_read_alike(posts, model, tokenizer, tmp_path):
    kind, examples, _ = posts
    kind.save(kind.module(model, examples, tokenizer), examples, tokenizer, CONTEXT, tmp_path)
    one, other, third = kind.predictor(tmp_path).probabilities(
        ["@anna_b late, see https://t.co/x?y=1", "@Bob late, see www.example.org/z", "anna_b late, write to a@b.org"]
    )
    assert (one == other).all() and (one != third).any()


def test_a_head_of_before_there_were_word_features_goes_on_answering(posts, model, tokenizer, tmp_path):
    from gpt2.model.heads import Classifier

    kind, examples, _ = posts
    older = Classifier(model, 2, features=2).eval()
    kind.save(older, examples, tokenizer, CONTEXT, tmp_path)
    settings = json.loads((tmp_path / "task.json").read_text())
    (tmp_path / "task.json").write_text(
        json.dumps({k: v for k, v in settings.items() if k not in ("masked", "temperature")})
    )
    (tmp_path / "ngrams.safetensors").unlink()
    rows = [[*tokenizer.encode("@anna was kind"), tokenizer.end_of_text]]
    expected = older.logits(*pad(rows)).softmax(-1).detach().numpy()
    assert kind.predictor(tmp_path).probabilities(["@anna was kind"]) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("bad", ["", "  ", None, 3, b"bytes"])
def test_sentiment_refuses_what_is_no_text(bad):
    from gpt2.tasks.task import checked_texts

    with pytest.raises(ValueError, match="input 1"):
        checked_texts(["fine", bad])


def test_bad_rows_are_counted_and_latin_1_is_read(tmp_path):
    kind, table = task("sentiment"), texts()
    extra = [
        ("", "positive"),
        ("no label here", None),
        (table.text[0], table.sentiment[0]),
        ("café très bon", "positive"),
    ]
    pd.concat([table, pd.DataFrame(extra, columns=table.columns)]).to_csv(
        tmp_path / "posts.csv", index=False, encoding="latin-1"
    )
    counts = kind.prepare(kind.Settings(), tmp_path / "posts.csv", tmp_path)
    assert counts["empty"] == 2
    assert counts["duplicates"] == 1 + int(table.text.duplicated().sum())
    assert any(
        "café" in t for s in ("train", "validation", "test") for t in pd.read_parquet(tmp_path / f"{s}.parquet").text
    )


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"labels": ["negative"]}, {}, "positive.*not among"),
        ({}, {"sentiment": "positive"}, "only the label"),
        ({"text_field": "body"}, {}, "no column 'body'.*set text_field"),
        ({}, {"sentiment": [str(i) for i in range(460)]}, "460 labels.*label_field"),
    ],
)
def test_unusable_labels_are_refused(tmp_path, settings, change, message):
    kind = task("sentiment")
    texts().assign(**change).to_csv(tmp_path / "posts.csv", index=False)
    with pytest.raises(ValueError, match=message):
        kind.prepare(kind.Settings(**settings), tmp_path / "posts.csv", tmp_path)


# Recommendation


def test_the_future_is_held_out(views):
    """The last item of a user, by time, is the test, the one before it the validation; neither trains anything."""
    _, source, examples, counts = views
    histories, items = load_examples(examples)
    raw = pd.read_csv(source / "interactions.csv")
    times = {(u, i): t for u, i, t in raw.itertuples(index=False)}
    users = pd.read_parquet(examples / "histories.parquet")["user"]
    for user, history in zip(users, histories, strict=True):
        seconds = [times[user, items["item"][i]] for i in history]
        assert seconds == sorted(seconds) and len(set(history)) == len(history)
    trained_on = Counter(int(i) for h in histories for i in h[:-2])
    assert items["popularity"].tolist() == [trained_on[i] for i in range(len(items))]
    assert counts["users"] == len(histories)


def test_training_windows_never_reach_what_is_held_out(views, tokenizer):
    kind, _, examples, _ = views
    histories, _ = load_examples(examples)
    training = kind.dataset(examples, "train", tokenizer, CONTEXT)
    validation = kind.dataset(examples, "validation", tokenizer, CONTEXT)
    targets = Counter()
    for i in range(len(training)):
        batch = training.batch([i], 0)
        read, following = batch["history"][0].tolist(), batch["following"][0].tolist()
        assert read[1:] == following[:-1]  # each is asked for what comes next
        targets.update(following)
    assert targets == Counter(int(x) for h in histories for x in h[1:-2])  # every training item is a target once
    assert len(validation) == len(histories)
    for i, history in enumerate(histories):
        batch = validation.batch([i], 0)
        asked = batch["following"] >= 0
        assert batch["following"][asked].tolist() == [history[-2]]
        assert history[-1] not in batch["history"][0].tolist()[: int(asked[0].nonzero()) + 1]


def test_ties_in_time_do_not_depend_on_the_file_order(views, tmp_path):
    kind, source, examples, _ = views
    raw = pd.read_csv(source / "interactions.csv").sample(frac=1, random_state=1)
    raw.to_csv(tmp_path / "interactions.csv", index=False)
    (tmp_path / "items.csv").write_bytes((source / "items.csv").read_bytes())
    kind.prepare(kind.Settings(), tmp_path, tmp_path)
    again, _ = load_examples(tmp_path)
    assert [h.tolist() for h in again] == [h.tolist() for h in load_examples(examples)[0]]


def test_recommendation_from_examples_to_report(views, model, tokenizer, tmp_path):
    kind, _, examples, _ = views
    module = trained(kind, model, examples, tokenizer, steps=20)
    saved, out = tmp_path / "model", tmp_path / "report"
    saved.mkdir(), out.mkdir()
    kind.save(module, examples, tokenizer, CONTEXT, saved)
    assert {p.name for p in saved.iterdir()} == SAVED | {"items.jsonl", "neighbours.safetensors"}
    predictor = kind.predictor(saved)
    asked = [
        {"history": ["Film number 3", "f4"]},
        {"history": ["Film number 3"], "candidates": ["Film number 4", "f9"]},
        {"history": []},
    ]
    answers = predictor.predict(asked, {"top_k": 5})
    first, among, cold = answers["ranking"]
    assert len(first) == 5 and not {"Film number 3", "Film number 4"} & set(first)
    assert sorted(among) == ["Film number 4", "Film number 9"] and len(cold) == 5
    assert all(scores == sorted(scores, reverse=True) for scores in answers["scores"])
    json.dumps(answers.to_dict("records"), allow_nan=False)
    histories, items = load_examples(examples)
    kept = {n: p.detach() for n, p in module.named_parameters()}
    assert predictor.module.popularity_weight.detach() == pytest.approx(kept["popularity_weight"])
    torch.testing.assert_close(predictor.module.taste.weight.detach(), kept["taste.weight"])
    read = [h[:-1] for h in histories]
    assert (predictor.scores(read) != predictor.by_text(read)).any()
    written = report.write(kind.evaluate(saved, examples, out), out)
    assert kind.primary in written["metrics"] and tuple(written["baselines"]) == kind.baselines
    stored(kind, written, out)
    behaved = written["tables"]["Behavioural tests, with 95 % intervals"]["rows"]
    assert {row[0] for row in behaved} == {MINIMUM, INVARIANCE, DIRECTION}
    assert {row[2] for row in behaved if row[0] == INVARIANCE} == {min(TESTED, len(histories))}
    older(kind, saved, read)
    assert any(part["slice"].startswith("history") for part in written["slices"])
    assert "recall.png" in {figure["file"] for figure in written["figures"]}
    ranks = pd.read_parquet(out / "predictions.parquet")
    assert ranks["test_item"].tolist() == [int(h[-1]) for h in histories]
    room = np.array([len(items) - len(h) + 1 for h in histories])  # what a user has seen does not compete
    assert (ranks["rank_model"] >= 1).all() and (ranks["rank_model"] <= room).all()


def older(kind, saved, histories):
    """A model that was saved before there were weights ranks by text, as it did."""
    told = json.loads((saved / "task.json").read_text())
    del told["weights"]
    (saved / "task.json").write_text(json.dumps(told))
    (saved / "neighbours.safetensors").unlink()
    predictor = kind.predictor(saved)
    assert (predictor.scores(histories) == predictor.by_text(histories)).all()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("Film number 3", "history"),
        ({"items": []}, "history"),
        ({"history": ["Film number 99"]}, "not in the catalogue"),
    ],
)
def test_recommendation_refuses_what_it_does_not_know(views, model, tokenizer, tmp_path, record, message):
    kind, _, examples, _ = views
    kind.save(kind.module(model, examples, tokenizer), examples, tokenizer, CONTEXT, tmp_path)
    with pytest.raises(ValueError, match=message):
        kind.predictor(tmp_path).predict([record], {})


def test_unusable_interactions_are_refused(views, tmp_path):
    kind, source, _, _ = views
    with pytest.raises(ValueError, match="interactions"):
        kind.prepare(kind.Settings(), tmp_path, tmp_path)
    raw = pd.read_csv(source / "interactions.csv")
    (tmp_path / "items.csv").write_bytes((source / "items.csv").read_bytes())
    raw.replace({"item": {"f1": "f77"}}).to_csv(tmp_path / "interactions.csv", index=False)
    with pytest.raises(ValueError, match="f77"):
        kind.prepare(kind.Settings(max_unknown=0), tmp_path, tmp_path)
    raw.head(3).to_csv(tmp_path / "interactions.csv", index=False)
    with pytest.raises(ValueError, match="users have 4 items"):
        kind.prepare(kind.Settings(), tmp_path, tmp_path)
