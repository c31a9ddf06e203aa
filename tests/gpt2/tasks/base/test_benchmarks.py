"""LAMBADA and HellaSwag against `transformers`, text by text, and against lm-evaluation-harness itself."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2 import weights
from gpt2.data.tokenizer import Tokenizer
from gpt2.model.config import ModelConfig
from gpt2.model.heads import pad
from gpt2.model.transformer import GPT2
from gpt2.tasks.base import benchmarks

WORDS = ["river", "horse", "camera", "night", "city", "light", "music", "story", "plot", "actor", "scene", "love"]


def sentence(generator, length):
    return " ".join(generator.choice(WORDS) for _ in range(length))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, trained a little so that some of its guesses are right, and both files."""
    out, generator = tmp_path_factory.mktemp("benchmarks"), random.Random(0)
    passages = [f"{sentence(generator, 5)}. And so the {w} was a {w}" for w in WORDS for _ in range(2)]
    passages += ["One", "  two words ", f"{sentence(generator, 90)} river", "an end,  twice spaced"]
    (out / "lambada_test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in passages))
    rows = []
    for i in range(24):
        endings = [f"{sentence(generator, 2 + (i + k) % 5)}." for k in range(4)]
        endings[i // 4 % 4] += " [substeps] More  of it. [title] Then rest"
        rows.append({
            "activity_label": generator.choice(WORDS), "ctx_a": f"A {sentence(generator, 6 if i else 80)}. [header] So",
            "ctx_b": "" if i % 3 else "then SHE", "endings": endings, "label": str(i % 4) if i % 2 else i % 4,
        })  # fmt: skip
    (out / "hellaswag_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = Tokenizer.train(iter([*passages, *map(json.dumps, rows)] * 2), 330)
    torch.manual_seed(0)
    model = GPT2(ModelConfig(n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=330))
    optimizer, half = torch.optim.AdamW(model.parameters(), 1e-2), passages[:12]
    ids, lengths = pad([tokenizer.encode(text) for text in half])
    targets = ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], -100)
    for _ in range(100):
        model.loss(ids[:, :-1], targets[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    (out / "model").mkdir()
    weights.save(model.eval(), out / "model")
    tokenizer.save(out / "model")
    (out / "model" / "task.json").write_text('{"task": "base"}')
    return out


def ours(folder, name, **options):
    model, tokenizer = weights.load(folder / "model"), Tokenizer.load(folder / "model")
    return benchmarks.measure(name, model, tokenizer, folder, **options)


def told(model, tokenizer, context, continuation):
    """(log-likelihood, whether greedy), by `transformers`, one text at a time."""
    before = tokenizer.encode(context.rstrip()) or [tokenizer.eos_token_id or 329]
    whole = tokenizer.encode(context + continuation) if context.strip() else [*before, *tokenizer.encode(continuation)]
    ids = torch.tensor([whole[-65:]])
    count = len(whole) - len(before)
    logits = model(ids[:, :-1]).logits[0, -count:]
    each = logits.log_softmax(-1).gather(1, ids[0, -count:, None])
    return float(each.sum()), bool((logits.argmax(-1) == ids[0, -count:]).all())


@pytest.fixture(scope="module")
def theirs(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(folder / "model")
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)


def test_lambada_is_that_of_transformers(folder, theirs):
    found = ours(folder, "lambada")
    texts = [json.loads(line)["text"] for line in (folder / "lambada_test.jsonl").read_text().splitlines()]
    with torch.no_grad():
        expected = []
        for text in texts:
            words = text.split(" ")
            expected.append(told(*theirs, " ".join(words[:-1]), " " + words[-1]))
    assert found["documents"] == len(texts) == 28
    assert found["metrics"]["acc"] == pytest.approx(np.mean([greedy for _, greedy in expected]))
    assert found["metrics"]["perplexity"] == pytest.approx(np.exp(-np.mean([value for value, _ in expected])), rel=1e-4)
    assert 0.1 < found["metrics"]["acc"] < 0.95  # it tells something
    low, high = found["intervals"]["acc"]
    assert low < found["metrics"]["acc"] < high


def test_hellaswag_is_that_of_transformers(folder, theirs):
    """The texts of one document as made by hand, all likelihoods, and what is chosen by them."""
    rows = [json.loads(line) for line in (folder / "hellaswag_val.jsonl").read_text().splitlines()]
    context, [first, *_] = rows[3]["ctx_a"].removesuffix(" [header] So"), rows[3]["endings"]
    begin = f"{rows[3]['activity_label']}: {context} So Then she"
    words = first.replace(" [substeps] More  of it. [title] Then rest", " More of it.. Then rest")
    assert benchmarks.hellaswag_pairs(rows[3])[0] == (begin, f" {words}")
    hits = []
    for row in rows:
        pairs = benchmarks.hellaswag_pairs(row)
        with torch.no_grad():
            values = np.array([told(*theirs, *pair)[0] for pair in pairs])
        mine, _ = benchmarks.score(weights.load(folder / "model"), Tokenizer.load(folder / "model"), pairs)
        assert mine == pytest.approx(values, rel=1e-4, abs=1e-3)
        size = [len(ending) - 1 for _, ending in pairs]
        hits.append([values.argmax() == int(row["label"]), (values / size).argmax() == int(row["label"])])
    found = ours(folder, "hellaswag")["metrics"]
    assert [found["acc"], found["acc_norm"]] == pytest.approx(np.mean(hits, axis=0).tolist())
    assert 0 < found["acc"] < 1 and 0 < found["acc_norm"] < 1


def test_neither_batches_nor_their_order_matter(folder):
    whole = ours(folder, "hellaswag")
    for size in (1, 7):
        assert ours(folder, "hellaswag", batch_size=size)["metrics"] == whole["metrics"]
    model, tokenizer = weights.load(folder / "model"), Tokenizer.load(folder / "model")
    pairs = [
        ("a river of light", " and music"),
        ("", "story"),
        ("night ", "city"),
        (sentence(random.Random(1), 80), " x"),
    ]
    together, greedy = benchmarks.score(model, tokenizer, pairs)
    for i, pair in enumerate(pairs):
        alone, its = benchmarks.score(model, tokenizer, [pair], 1)
        assert alone[0] == pytest.approx(together[i], abs=1e-4) and its[0] == greedy[i]
    moved, _ = benchmarks.score(model, tokenizer, [("night", " city")])
    assert moved[0] == pytest.approx(together[2], abs=1e-4)


def test_what_is_absent_is_said_and_what_is_wrong_refused(folder, tmp_path):
    model, tokenizer = weights.load(folder / "model"), Tokenizer.load(folder / "model")
    assert benchmarks.measure("lambada", model, tokenizer, tmp_path) == f"there is no lambada*.jsonl in {tmp_path}"
    (tmp_path / "lambada.jsonl").write_text("")
    assert "is empty" in benchmarks.measure("lambada", model, tokenizer, tmp_path)
    (tmp_path / "hellaswag.jsonl").write_text('{"ctx_a": "x"}\n')
    with pytest.raises(ValueError, match=r"hellaswag\.jsonl, line 1: no document of hellaswag \(KeyError"):
        benchmarks.measure("hellaswag", model, tokenizer, tmp_path)
    assert ours(folder, "lambada", limit=5)["documents"] == 5
    with pytest.raises(ValueError, match="0 tokens; 1 to 64 can be scored"):
        benchmarks.score(model, tokenizer, [("a", "")])


@pytest.fixture(scope="module")
def lm_eval():
    return pytest.importorskip("lm_eval", reason="the optional extra lm-eval is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task", "split"), [
    ("lambada", "lambada_openai", "test"), ("hellaswag", "hellaswag", "validation"),
])  # fmt: skip
def test_figures_are_those_of_lm_eval(folder, lm_eval, name, task, split, monkeypatch, tmp_path):
    """The harness's own task on our file: its texts, its cuts, its metrics, with `transformers`."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    [data] = folder.glob(f"{name}*.jsonl")
    shipped = next(Path(lm_eval.__file__).parent.glob(f"tasks/*/{task}.yaml"))
    lines = [f"include: {shipped}", f"task: our_{name}", "dataset_path: json", "dataset_name: null"]
    lines += [f"dataset_kwargs: {{data_files: {{{split}: {data.name}}}}}", "tag: null", "training_split: null"]
    (folder / f"our_{name}.yaml").write_text("\n".join(lines) + "\n")
    theirs = benchmarks.measure_by_harness(f"our_{name}", folder / "model", folder, batch_size=3)
    assert isinstance(theirs, dict), theirs
    mine = ours(folder, name)
    assert theirs["documents"] == mine["documents"] and set(theirs["metrics"]) == set(mine["metrics"])
    for metric, value in theirs["metrics"].items():
        assert mine["metrics"][metric] == pytest.approx(value, rel=1e-4), metric
    assert "the harness says" in benchmarks.measure_by_harness("no_such_task", folder / "model", folder)


def test_a_harness_that_is_not_there_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert benchmarks.measure_by_harness("arc_easy", folder / "model", folder) == benchmarks.INSTALL
