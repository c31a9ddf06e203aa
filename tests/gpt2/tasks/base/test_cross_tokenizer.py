"""A model on the held-out text of another run: its report is what it finds there with its own tokenizer."""

import math
import random

import numpy as np
import pandas as pd
import pytest
import torch

from gpt2 import weights
from gpt2.data.batches import TokenDataset
from gpt2.data.shards import TokenStream
from gpt2.data.tokenizer import Tokenizer
from gpt2.gate.verdict import measured
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.tasks.base import report as base_report
from gpt2.tasks.base.kind import BASE
from tests.conftest import sentence

CONTEXT = 32


def model_in(folder, tokenizer, n_positions=CONTEXT, seed=0):
    """A model with strong opinions, none of them learned."""
    torch.manual_seed(seed)
    model = GPT2(ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=n_positions, vocab_size=tokenizer.vocab_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    weights.save(model, folder)
    tokenizer.save(folder)
    return folder


class Run:
    """Held-out documents, a run's tokens of them and its model."""

    def __init__(self, folder, texts, vocabulary):
        self.folder, self.texts = folder, texts
        self.tokenizer = Tokenizer.train(texts, vocabulary)
        self.tokenizer.save(folder / "tokenizer")
        model_in(folder / "model", self.tokenizer)
        end = self.tokenizer.end_of_text
        np.array([i for t in texts for i in [*self.tokenizer.encode(t), end]], "<u2").tofile(folder / "validation.bin")
        self.data = TokenDataset(TokenStream([folder / "validation.bin"], "uint16"), CONTEXT)
        self.bytes = sum(len(t.encode()) for t in texts)
        self.parts = {"": (self.data, self.bytes / len(self.data.stream))}

    def own_report(self):
        (self.folder / "own").mkdir()
        return base_report.evaluate(self.folder / "model", self.parts, self.data, self.folder / "own")

    def report_of(self, model, context=CONTEXT):
        (self.folder / "theirs").mkdir()
        directory, out = self.folder / "tokenizer", self.folder / "theirs"
        return base_report.evaluate_by_own_tokens(model, directory, context, self.parts, self.data, out)

    def unit_results(self, which, report):
        return measured(report, self.folder / which).unit_results


@pytest.fixture
def run(tmp_path):
    generator = random.Random(0)
    texts = [" ".join(sentence(generator, 9) for _ in range(3)) + f" Café № {i} <|endoftext|>" for i in range(60)]
    return Run(tmp_path, texts, 330)


def stranger(folder, vocabulary, **shape):
    """A model whose tokenizer knows other words."""
    generator = random.Random(1)
    words = ["".join(generator.choice("abdefilmnorstu") for _ in range(7)) for _ in range(60)] + ["plot", "actor"]
    texts = [" ".join(generator.choice(words) for _ in range(30)) for _ in range(60)]
    return model_in(folder / "stranger", Tokenizer.train(texts, vocabulary), **shape)


def brute_force(directory, texts, context):
    """[(the bytes, 1 of an end, of a token, its nats)] of each document, the very first token's nats unknown."""
    model, tokenizer = weights.load(directory).eval(), Tokenizer.load(directory)
    vocabulary = tokenizer.token_bytes
    ids, sizes = [], []
    for text in texts:
        own = tokenizer.encode(text)
        assert b"".join(vocabulary[i] for i in own) == text.encode()
        ids += [*own, tokenizer.end_of_text]
        sizes += [*(len(vocabulary[i]) for i in own), 1]
    nats = [0.0]
    for start in range(0, len(ids) - 1, context):
        seen = ids[start : start + context]
        with torch.no_grad():
            logs = model.logits(model.hidden(torch.tensor([seen]))).log_softmax(-1)[0]
        nats += [-float(logs[i, wanted]) for i, wanted in enumerate(ids[start + 1 : start + 1 + context])]
    rows, found = list(zip(sizes, nats, strict=True)), []
    for text in texts:
        count = len(tokenizer.encode(text)) + 1
        found.append(rows[:count])
        rows = rows[count:]
    return found


@pytest.mark.parametrize(("vocabulary", "context"), [(270, 32), (400, 32), (300, 20)])
def test_bits_are_those_that_its_own_tokenizer_gives(run, vocabulary, context):
    directory = stranger(run.folder, vocabulary, n_positions=context)
    report = run.report_of(directory, context)
    stored = pd.read_parquet(run.folder / "theirs" / "predictions.parquet")
    documents = [sum(nats for _, nats in rows) for rows in brute_force(directory, run.texts, context)]
    assert report["unit"] == "document"
    whole = range(1, len(stored) - 1)  # what is before the first target and after the last sample is no one's
    assert len(whole) > 50
    assert [stored["nll"][i] for i in whole] == pytest.approx([documents[i] for i in whole], rel=1e-4)
    bits = sum(documents) / math.log(2) / run.bytes
    assert report["metrics"]["bits_per_byte"] == pytest.approx(bits, rel=0.01)
    ids = [i for t in run.texts for i in [*run.tokenizer.encode(t), run.tokenizer.end_of_text]]
    assert report["counts"]["validation_tokens"] == len(run.data) * CONTEXT < len(ids)
    assert report["counts"]["context"] == context
    assert f"a tokenizer of its own, of {vocabulary} ids, and {context} tokens at once" in report["remarks"][0]


def test_it_is_compared_with_the_run_s_own_model_in_pairs(run):
    mine, theirs = run.own_report(), run.report_of(stranger(run.folder, 400))
    both = run.unit_results("own", mine).against(run.unit_results("theirs", theirs), "champion")
    assert len(both) == mine["units"] and both.value("bits_per_byte") == pytest.approx(mine["metrics"]["bits_per_byte"])
    assert both.value("bits_per_byte", "champion") == pytest.approx(theirs["metrics"]["bits_per_byte"])
    assert mine["baselines"]["unigram"] == pytest.approx(theirs["baselines"]["unigram"])
    assert not {*mine, "remarks"} ^ {*theirs}


def test_who_reads_alike_finds_what_an_evaluation_finds(run):
    mine, theirs = run.own_report(), run.report_of(run.folder / "model")
    assert theirs["metrics"] == pytest.approx(mine["metrics"]) and theirs["intervals"] == mine["intervals"]
    pd.testing.assert_frame_equal(*(pd.read_parquet(run.folder / w / "predictions.parquet") for w in ("own", "theirs")))
    assert "read it with the same tokenizer and 32 tokens" in theirs["remarks"][0]


def test_of_few_documents_each_stretch_has_its_bytes_share(tmp_path):
    generator = random.Random(0)
    run = Run(tmp_path, [" ".join(sentence(generator, 30) for _ in range(20)) for _ in range(3)], 300)
    directory = stranger(tmp_path, 280)
    assert run.report_of(directory)["unit"] == "sample"
    stored = pd.read_parquet(tmp_path / "theirs" / "predictions.parquet")
    each = [
        nats / size for rows in brute_force(directory, run.texts, CONTEXT) for size, nats in rows for _ in range(size)
    ]
    vocabulary = run.tokenizer.token_bytes
    ids = [i for t in run.texts for i in [*run.tokenizer.encode(t), run.tokenizer.end_of_text]]
    ends = np.cumsum([1 if i == run.tokenizer.end_of_text else len(vocabulary[i]) for i in ids])
    for i, nll in enumerate(stored["nll"]):
        assert nll == pytest.approx(sum(each[ends[i * CONTEXT] : ends[(i + 1) * CONTEXT]]), rel=1e-4)
    assert measured(run.own_report(), tmp_path / "own").unit_results.key == BASE.unit_results(stored).key


def test_a_context_beyond_its_positions_is_refused(run):
    with pytest.raises(ValueError, match="40 tokens are more than the model's 32 positions"):
        run.report_of(stranger(run.folder, 300), 40)
