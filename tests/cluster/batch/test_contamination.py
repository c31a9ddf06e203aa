"""Planted copies in the text of a store: found in what is trained on, over a refresh too, and nowhere else."""

import json
import random

import pytest

from cluster.batch import contamination, tokenization
from cluster.home import store
from cluster.registry.lineage import PARENT
from flows.config import resolve
from flows.plan import make_plan
from flows.stage_code import stage_code
from gpt2.data.splits import content_digest, is_validation
from gpt2.evaluation import contamination as evaluation_contamination
from gpt2.store.artifact import Key
from gpt2.tasks.task import task

SHARE = 0.2


def text(generator):
    return " ".join("".join(generator.choices("abcdefgh", k=5)) for _ in range(60))


def split(generator, count, held_out):
    """So many texts of one split."""
    found = (t for t in iter(lambda: text(generator), None) if is_validation(content_digest(t), SHARE) == held_out)
    return [next(found) for _ in range(count)]


def copied(held_out, generator):
    """A training document that has half of a held-out one within."""
    words = held_out.split()[:30]
    while True:
        made = " ".join([*text(generator).split()[:20], *words, *text(generator).split()[:20]])
        if not is_validation(content_digest(made), SHARE):
            return made


def encoded(path, parent=None):
    """The tokens of a file of documents; what it takes is made without Ray."""
    config = resolve("smoke", None, [f"corpus.sources=[{path}]", f"corpus.validation_share={SHARE}"])
    config = config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"vocab_size": 300})})
    plan, s, corpus = make_plan(config), store(), config.corpus
    documents = tokenization.clean_documents(s, plan.documents, plan.sources, corpus, print, here=True)
    inputs = {PARENT: parent.manifest["inputs"]["corpus"]} if parent else {}
    key = Key("corpus", {}, {**inputs, **plan.corpus.inputs}, plan.corpus.code)
    merged = s.make(key, lambda out: tokenization.deduplicate(documents, out))
    shape = config.tokenizer
    if parent:
        tokenizer = s.require("tokenizer", parent.manifest["inputs"]["tokenizer"])
    else:
        tokenizer = s.make(
            plan.tokenizer, lambda out: tokenization.train_tokenizer(documents, merged, corpus, shape, out)
        )
    inputs = {PARENT: parent.id} if parent else {}
    tokens = Key(
        "tokens", plan.tokens.spec, {**inputs, "corpus": merged.id, "tokenizer": tokenizer.id}, plan.tokens.code
    )
    return s.make(
        tokens,
        lambda out: tokenization.encode(
            s, documents, merged, tokenizer, corpus, shape.dtype, stage_code("encode"), out, print, parent, here=True
        ),
    )


def write(path, documents):
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Twenty held-out documents; six are in training documents, two of these in the text of a refresh."""
    folder, generator = tmp_path_factory.mktemp("planted"), random.Random(0)
    held_out, training = split(generator, 20, held_out=True), split(generator, 60, held_out=False)
    before = [copied(t, generator) for t in held_out[:4]]
    after = [copied(t, generator) for t in held_out[4:6]]
    first = encoded(write(folder / "first.jsonl", [*training[:40], *held_out, *before]))
    return held_out, first, encoded(write(folder / "second.jsonl", [*training[40:], *after]), first)


def contaminated(tokens, out):
    info = contamination.search_documents(tokens, out)
    found = json.loads((out / "contamination.json").read_text())
    assert info == {"units": 20, "contaminated": len(found["contaminated"]), "contamination": found["share"]}
    return found["contaminated"]


def test_copies_are_found_in_all_text_that_was_trained_on(planted, tmp_path, monkeypatch):
    held_out, first, second = planted
    marks = [content_digest(t).hex() for t in held_out]
    assert sorted(contaminated(first, tmp_path)) == sorted(marks[:4])
    assert sorted(contaminated(second, tmp_path)) == sorted(marks[:6])
    # Of very many held-out documents some are looked for, chosen by their hashes.
    monkeypatch.setattr(contamination, "MAX_DOCUMENTS", 8)
    contamination.search_documents(second, tmp_path)
    found = json.loads((tmp_path / "contamination.json").read_text())
    assert 2 <= found["units"] < 16 and found["total"] == 20 and set(found["contaminated"]) <= set(marks[:6])
    assert "(of 20, chosen by hash)" in evaluation_contamination.as_sentence(found)


def test_a_task_is_looked_for_in_the_pretraining_text_and_its_own_examples(planted, tmp_path):
    held_out, first, _ = planted
    generator = random.Random(1)
    posts = [" ".join(text(generator).split()[:15]) for _ in range(300)]
    rows = [
        *posts,
        *(f"{post[:-3]}xyz http://t.co/1" for post in posts[:20]),
        *(" ".join(t.split()[:14]) for t in held_out),
    ]
    table = "text,sentiment\n" + "".join(f"{row},{'ab'[i % 2]}\n" for i, row in enumerate(rows))
    (tmp_path / "posts.csv").write_text(table)
    kind = task("sentiment")
    spec = kind.Settings(source=str(tmp_path / "posts.csv"), test_share=0.5)
    key = Key("sentiment-examples", {}, {"source": str(tmp_path)}, ())
    examples = store().make(key, lambda out: kind.prepare(spec, tmp_path / "posts.csv", out))
    contamination.search_examples("sentiment", first, examples, tmp_path)
    found = json.loads((tmp_path / "contamination.json").read_text())
    test = kind.texts(examples.path, "test")
    expected = {i for i, post in enumerate(test) if any(post in t for t in held_out[:4])}
    assert expected and set(found["contaminated"]) == expected  # near-duplicates were kept on one side
    assert {row["source"] for row in found["by"]} == {evaluation_contamination.CORPUS}


def test_choices_are_no_texts(planted, tmp_path):
    examples = store().make(Key("recommendation-examples", {}, {"source": "none"}, ()), lambda out: {})
    assert contamination.search_examples("recommendation", planted[1], examples, tmp_path)["units"] == 0
