"""Customer-service answers: from a made-up knowledge file to a report; search, loss and checks by other means."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

from flows.config import preset_names, resolve
from gpt2.data.near_duplicates import jaccard, shingles
from gpt2.data.text import words
from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation import report
from gpt2.model.config import ModelConfig
from gpt2.model.heads import pad
from gpt2.model.transformer import GPT2
from gpt2.tasks.support.config import SupportSettings
from gpt2.tasks.support.dataset import PairDataset, PromptEncoder, read_source
from gpt2.tasks.support.predictor import withheld
from gpt2.tasks.support.retriever import BM25, best_rank, fit
from gpt2.tasks.task import task

THINGS = ["printer", "router", "screen", "mouse", "keyboard", "phone", "camera", "speaker", "laptop", "tablet"]
TROUBLE = {
    "is broken": "Send the {} to our workshop and we repair it.",
    "makes strange noises at night": "Switch off the {} and clean its fan.",
    "does not start any more": "Hold the power button of the {} for ten seconds.",
    "got lost on the way": "We send you a new {} within two days.",
}
KIND = task("support")
CONTEXT = 96


def knowledge():
    rows = [(f"My {thing} {what}.", a.format(thing)) for thing in THINGS for what, a in TROUBLE.items()]
    rows += [
        (f"Can I return a {thing} that I bought?", "Every purchase can be returned for a month.") for thing in THINGS
    ]
    rows += [(f"my {THINGS[0]} makes strange noises at night!!", "Call us about the noise.")]  # a near-duplicate
    return pd.DataFrame(rows, columns=["question", "answer"])


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train((" ".join(row).lower() for row in knowledge().itertuples(index=False)), 400)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    out = tmp_path_factory.mktemp("support")
    table = pd.concat(
        [knowledge(), knowledge()[:3], pd.DataFrame([("", "x"), ("y", None)], columns=["question", "answer"])]
    )
    table.to_csv(out / "faq.csv", index=False)
    counts = KIND.prepare(KIND.Settings(), out / "faq.csv", out)
    return out, counts


def module_of(examples, tokenizer):
    torch.manual_seed(0)
    model = GPT2(ModelConfig(n_layer=1, n_head=2, n_embd=32, n_positions=128, vocab_size=400))
    return KIND.module(model, examples, tokenizer)


def test_every_pair_is_in_one_split_and_questions_alike_in_the_same(examples):
    out, counts = examples
    pairs = pd.read_parquet(out / "pairs.parquet")
    assert counts["rows"] == 56 and counts["empty"] == 2 and counts["duplicates"] == 3 and len(pairs) == 51
    assert {s: int((pairs["split"] == s).sum()) for s in ("train", "validation", "test")} == {
        s: counts[s] for s in ("train", "validation", "test")
    }
    marks = {s: [shingles(q) for q in part["question"]] for s, part in pairs.groupby("split")}
    assert max(jaccard(a, b) for a in marks["test"] for s in ("train", "validation") for b in marks[s]) < 0.7
    noises = pairs[pairs["question"].str.contains(f"(?i)my {THINGS[0]} makes")]
    assert len(noises) == 2 and noises["group"].nunique() == 1


def test_bm25_is_that_of_the_formula():
    texts = [*knowledge()["answer"][:20], "a a a b", "b"]
    queries = ["send the printer", "a a b", "unheard of", ""]
    found = BM25(texts).scores(queries)
    documents = [words(t) for t in texts]
    mean = sum(map(len, documents)) / len(documents)
    for q, query in enumerate(queries):
        for d, document in enumerate(documents):
            score = 0.0
            for word in words(query):
                having = sum(word in other for other in documents)
                idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
                tf = document.count(word)
                score += idf * tf * 2.2 / (tf + 1.2 * (1 - 0.75 + 0.75 * len(document) / mean))
            assert found[q, d] == pytest.approx(score)


def test_the_weights_are_the_likeliest():
    generator = np.random.default_rng(0)
    right = [[int(i)] for i in generator.integers(8, size=60)]
    good, noise = generator.normal(size=(60, 8)), generator.normal(size=(60, 8))
    good[np.arange(60), [r[0] for r in right]] += 1.5

    def loss(a, b):
        scores = torch.tensor(a * good + b * noise)
        return float(torch.nn.functional.cross_entropy(scores, torch.tensor([r[0] for r in right])))

    found = fit([good, noise], right)
    grid = [(a, b) for a in np.arange(0, 4, 0.05) for b in np.arange(0, 2, 0.05)]
    assert loss(*found) <= min(loss(a, b) for a, b in grid) + 1e-6 and min(found) >= 0


def test_rank_of_several_right_answers():
    scores = np.array([0.9, 0.5, 0.8, 0.7, 0.5])
    assert best_rank(scores, [1]) == 4 and best_rank(scores, [1, 2]) == 2 and best_rank(scores, [0, 2]) == 1


def test_the_loss_of_a_question_does_not_depend_on_its_batch(examples, tokenizer):
    out, _ = examples
    module, data = module_of(out, tokenizer).eval(), KIND.dataset(out, "train", tokenizer, CONTEXT)
    data.negatives = 7
    with torch.no_grad():
        alone = [float(module(**data.batch([i], 5))) for i in range(12)]
        together, other = float(module(**data.batch(range(12), 5))), float(module(**data.batch(range(12), 6)))
    assert together == pytest.approx(np.mean(alone), rel=1e-5) and together != other
    batch = data.batch(range(12), 5)
    assert batch["candidates"].gather(1, batch["right"][:, None]).all()
    assert (batch["candidates"].sum(1) <= 8).all()


def test_no_right_answer_is_taken_for_a_wrong_one(tokenizer):
    rows = [("Is it open?", "Yes.", 0, "train"), ("is it open", "From nine.", 0, "train"), ("Who?", "We.", 2, "train")]
    pairs = pd.DataFrame(rows, columns=["question", "answer", "group", "split"])
    data = PairDataset(pairs, "train", PromptEncoder(tokenizer, CONTEXT), 64)
    batch = data.batch([0, 1, 2], 0)
    assert batch["candidates"].sum(1).tolist() == [2, 2, 3]


def test_the_loss_is_that_of_its_parts(examples, tokenizer):
    """The right answer's cross-entropy among embeddings made one by one, and the mean over replies of their tokens'."""
    out, _ = examples
    module, data = module_of(out, tokenizer).eval(), KIND.dataset(out, "train", tokenizer, CONTEXT)
    batch = data.batch([0, 3, 5], 1)
    with torch.no_grad():
        expected = 0.0
        answers = torch.cat(
            [module.embed(r[None, :n], n[None]) for r, n in zip(batch["answers"], batch["answer_lengths"], strict=True)]
        )
        assert answers.norm(dim=-1) == pytest.approx(torch.ones(len(answers)), abs=1e-5)
        for row in range(3):
            n, q, r = (int(batch[name][row]) for name in ("lengths", "question_lengths", "reply_lengths"))
            ids = batch["ids"][row, :n]
            asked = module.embed(ids[None, :q], torch.tensor([q]))
            logits = (module.log_scale.exp() * asked @ answers.T)[0]
            logits[~batch["candidates"][row]] = float("-inf")
            expected -= float(logits.log_softmax(0)[batch["right"][row]])
            told = module.model.logits(module.model.hidden(ids[None]))[0].log_softmax(-1)
            expected -= 0.2 * float(told[n - r - 1 : n - 1].gather(1, ids[n - r :, None]).mean())
        assert float(module(**batch)) == pytest.approx(expected / 3, rel=1e-4)


def test_from_examples_to_report(examples, tokenizer, tmp_path):
    folder, _ = examples
    module, data = module_of(folder, tokenizer).train(), KIND.dataset(folder, "train", tokenizer, CONTEXT)
    optimizer, generator, losses = torch.optim.AdamW(module.parameters(), 3e-3), np.random.default_rng(0), []
    for step in range(60):
        loss = module(**data.batch(generator.integers(len(data), size=16).tolist(), step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    saved, out = tmp_path / "model", tmp_path / "report"
    saved.mkdir(), out.mkdir()
    KIND.save(module, folder, tokenizer, CONTEXT, saved)
    names = {"config.json", "model.safetensors", "head.safetensors", "tokenizer.json", "task.json", "knowledge.jsonl"}
    assert {p.name for p in saved.iterdir()} == names
    predictor = KIND.predictor(saved)
    module.eval()
    rows = pad(predictor.reader.questions(["my mouse is broken"]))
    torch.testing.assert_close(predictor.embed(predictor.reader.questions(["my mouse is broken"])), module.embed(*rows))
    table = knowledge().drop_duplicates("question")
    answers = predictor.predict(["my MOUSE is broken!", "is there a screen that noises at night?"], {"max_tokens": 8})
    assert answers["answer"][0] == TROUBLE["is broken"].format("mouse") and answers["score"][0] == 1
    assert 0 < answers["score"][1] < 1 and set(answers["answer"]) <= set(table["answer"])
    assert all((reply == "") == bool(why) for reply, why in zip(answers["reply"], answers["withheld"], strict=True))
    unsure = predictor.predict(["is there a screen that noises at night?"], {"abstain_below": 1.0, "max_tokens": 8})
    assert unsure[["answer", "reply", "withheld"]].iloc[0].tolist() == ["", "", "nothing fits"]
    asked = ["my MOUSE is broken!", "is there a screen that noises at night?"]
    looked, ranked = predictor.scores_with_lookup(asked), predictor.scores(asked)
    assert looked[0].max() == 1 == looked[0].sum() and ranked[0].max() < 1 and (looked[1] == ranked[1]).all()
    assert predictor.predict([], {}).empty
    with pytest.raises(ValueError, match=r"abstain_below=2.*give 0 to 1"):
        predictor.predict(["what?"], {"abstain_below": 2.0})
    written = report.write(KIND.evaluate(saved, folder, out), out)
    assert written["metrics"]["recall_at_1"] > 3 / len(predictor.answers)
    assert tuple(written["baselines"]) == KIND.baselines
    behaved = written["tables"]["Behavioural tests, with 95 % intervals"]["rows"]
    assert len(behaved) == 8 and all(re.fullmatch(r"\d+% \[\d+%, \d+%\]", row[3]) for row in behaved)
    assert "recall.png" in {figure["file"] for figure in written["figures"]}
    predictions = pd.read_parquet(out / "predictions.parquet")
    again = KIND.unit_results(predictions)
    summary = json.loads(json.dumps(again.summary()))
    low, high = written["intervals"]["model"].pop("replies_shown")
    assert {n: written[n] for n in summary} == summary
    shown = predictions["withheld"] == ""
    assert written["metrics"]["replies_shown"] == pytest.approx(shown.mean())
    wilson = binomtest(int(shown.sum()), len(shown)).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=1e-4)
    ranks = predictions["rank_model"].to_numpy()
    expected = {"mrr": (1 / ranks).mean(), "recall_at_1": (ranks == 1).mean(), "recall_at_5": (ranks <= 5).mean()}
    assert {n: written["metrics"][n] for n in expected} == pytest.approx(expected)
    assert (
        sum(n for _, n in written["tables"]["Replies to the test's questions"]["rows"])
        == written["counts"]["questions"]
    )


OTHERS = ["Switch off the router and clean its fan at once.", "Bring it to the shop.", "No."]


@pytest.mark.parametrize(
    ("reply", "ended", "why"),
    [
        ("Bring it to the shop.", True, ""),
        ("Bring my screen to the shop, is it broken?", True, ""),
        (" ?", True, "it is empty"),
        ("Bring it", True, "it is too short"),
        ("Bring it to the shop to the shop", False, "it has no end"),
        ("Bring it. Switch off the router and clean it", True, "it copies another answer"),
        ("There was a film that nobody liked", True, "it strays from the answer"),
    ],
)
def test_what_fails_a_check_is_not_shown(reply, ended, why):
    assert withheld(reply, ended, "My screen is broken?", OTHERS[1], OTHERS) == why


def test_conversations_and_unusable_files(tmp_path):
    (tmp_path / "a.yml").write_text('conversations:\n- - Who?\n  - "1963"\n  - And?\n- greetings\n- - alone\n')
    assert read_source(tmp_path, SupportSettings()).to_numpy().tolist() == [["Who?", "1963"]]
    knowledge().to_json(tmp_path / "faq.jsonl", orient="records", lines=True)
    with pytest.raises(ValueError, match=r"no column 'reply'.*set answer_field"):
        read_source(tmp_path / "faq.jsonl", SupportSettings(answer_field="reply"))
    knowledge()[:2].to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(ValueError, match=r"too few questions \(2\)"):
        KIND.prepare(KIND.Settings(), tmp_path / "short.csv", tmp_path)


def test_a_context_without_room_is_refused(tokenizer):
    with pytest.raises(ValueError, match="context=8 leaves no room"):
        PromptEncoder(tokenizer, 8)


@pytest.mark.parametrize("preset", preset_names())
def test_it_is_off_until_it_is_asked_for_and_fits_every_preset(preset):
    assert "support" not in resolve(preset).task_settings()
    assert "support" in resolve(preset, None, ["tasks.support.enabled=true"]).task_settings()


def test_a_champion_of_an_older_knowledge_file_is_measured_on_the_new_one(examples, tokenizer, tmp_path):
    """To a question whose answer it does not have, all that it has comes first."""
    saved, changed = tmp_path / "model", tmp_path / "changed"
    for folder in (saved, changed, tmp_path / "old", tmp_path / "new"):
        folder.mkdir()
    KIND.save(module_of(examples[0], tokenizer), examples[0], tokenizer, CONTEXT, saved)
    pairs = pd.read_parquet(examples[0] / "pairs.parquet")
    lately = pairs["answer"].str.contains("workshop|two days")
    assert 0 < lately[pairs["split"] == "test"].sum() < (pairs["split"] == "test").sum()
    pairs.assign(answer=pairs["answer"].where(~lately, pairs["answer"] + " It is free.")).to_parquet(
        changed / "pairs.parquet", index=False
    )
    KIND.evaluate(saved, examples[0], tmp_path / "old")
    found = KIND.evaluate(saved, changed, tmp_path / "new")
    assert "Behavioural tests, with 95 % intervals" not in found["tables"]
    old, new = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("old", "new"))
    right = pairs[pairs["split"] == "test"].assign(lately=lately).groupby("question")["lately"].any()
    gone = new["question"].map(right).to_numpy()
    assert (new["question"] == old["question"]).all() and 0 < gone.sum() < len(gone)
    count = len(KIND.predictor(saved).answers)
    for name in ("model", "BM25"):
        assert (new[f"rank_{name}"][~gone] == old[f"rank_{name}"][~gone]).all()
        assert (new[f"rank_{name}"][gone] == count + 1).all()
