"""Trials are the pipeline's own training, seen from close up; tuning changes what it says and costs what it says."""

import json
import random

import numpy as np
import pytest
import torch

from gpt2.analysis.interpret import gradient_norms
from gpt2.analysis.small_runs import Text, in_memory, trial, tune
from gpt2.data import corpus
from gpt2.data.batches import TokenDataset
from gpt2.data.shards import TokenStream, encode_piece
from gpt2.data.splits import content_digest, is_validation
from gpt2.data.tokenizer import Tokenizer
from gpt2.model.config import AdaptationConfig, ModelConfig
from gpt2.model.heads import LanguageModel
from gpt2.model.transformer import GPT2
from gpt2.tasks.task import task
from gpt2.training.config import OptimizerConfig, TrainConfig
from gpt2.training.engine import TorchEngine
from gpt2.training.journal import JOURNAL, read_journal
from gpt2.training.loop import accumulate, fit
from tests.conftest import sentence

SHAPE = ModelConfig(n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=300)
TRAIN = TrainConfig(
    steps=6, epochs=100, batch_size=8, micro_batch_size=4, context=16, precision="fp32", eval_every=4, log_every=1,
    optimizer=OptimizerConfig(learning_rate=1e-2), seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def documents():
    generator = random.Random(0)
    return [" ".join(sentence(generator) for _ in range(4)) for _ in range(60)]


@pytest.fixture(scope="module")
def text(documents):
    tokenizer = Tokenizer.train(documents, 300)
    parts = (TokenDataset(in_memory(part, tokenizer), 16) for part in (documents[:50], documents[50:]))
    return Text(tokenizer, *parts)


def test_a_stream_in_memory_is_that_of_shards(documents, text, tmp_path):
    corpus.write_piece(documents, tmp_path / "piece.parquet")
    encode_piece(tmp_path / "piece.parquet", np.ones(60, bool), text.tokenizer, "uint16", 0.2, tmp_path)
    kept = [d for d in documents if not is_validation(content_digest(d), 0.2)]
    theirs, ours = TokenStream([tmp_path / "train.bin"], "uint16"), in_memory(kept, text.tokenizer)
    assert 0 < len(kept) < 60 and len(ours) == len(theirs)
    assert np.array_equal(ours.read(0, len(ours)), theirs.read(0, len(theirs)))
    assert np.array_equal(ours.read(17, 500), theirs.read(17, 500))  # across documents


def test_a_trial_is_the_training_that_the_plain_engine_does(text, tmp_path):
    seen = trial(SHAPE, text, TRAIN)
    model = GPT2(SHAPE, seed=3)
    fit(TorchEngine(LanguageModel(model), TRAIN, "cpu"), text.training, text.validation, TRAIN, tmp_path)
    records = read_journal(tmp_path / JOURNAL)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), seen.model.parameters(), strict=True))
    assert seen.losses == pytest.approx([r["loss"] for r in records if "loss" in r], rel=1e-6)
    assert seen.validation == [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r]
    assert [step for step, _ in seen.validation] == [4, 6]
    assert seen.validation_loss < seen.losses[0] - 0.1  # it learns
    totals = [sum(n**2 for n in step.values()) ** 0.5 for step in seen.norms]
    assert totals == pytest.approx([r["grad_norm"] for r in records if "grad_norm" in r], rel=1e-5)
    assert len(seen.seconds) == 6 and min(seen.seconds) > 0


def test_norms_are_those_before_the_first_step(text):
    seen = trial(SHAPE, text, TRAIN.model_validate({**TRAIN.model_dump(), "steps": 1}))
    engine = TorchEngine(LanguageModel(GPT2(SHAPE, seed=3)), TRAIN, "cpu")
    accumulate(engine, text.training, TRAIN, 0)
    assert seen.norms == [pytest.approx(gradient_norms(engine.module), rel=1e-6)]


def test_a_training_that_breaks_says_so_at_the_end(text):
    hopeless = {"learning_rate": 1.0, "clip": 0, "weight_decay": 0, "beta2": 0.0, "epsilon": 1e-8}
    values = {**TRAIN.model_dump(), "optimizer": hopeless, "guard": {"max_norm_ratio": 0}}
    seen = trial(
        ModelConfig.model_validate({**SHAPE.model_dump(), "norm": "none", "initializer_range": 1.0}),
        text,
        TrainConfig.model_validate(values),
    )
    assert seen.validation[-1][0] == 6
    assert not seen.validation_loss < seen.losses[0]


@pytest.fixture(scope="module")
def posts(small_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("examples")
    task("sentiment").prepare(task("sentiment").Settings(ngrams=False), small_data["posts"], out)
    return out


@pytest.mark.parametrize("kind", ["full", "lora", "prefix", "head"])
def test_tuning_changes_a_copy_and_counts(text, posts, kind):
    base = GPT2(SHAPE, seed=0)
    before = {name: p.clone() for name, p in base.state_dict().items()}
    values = {**TRAIN.model_dump(), "steps": 12, "batch_size": 16, "micro_batch_size": 16}
    tuned = tune(
        base, text.tokenizer, task("sentiment"), posts, AdaptationConfig(kind=kind), TrainConfig.model_validate(values)
    )
    assert all(torch.equal(p, before[name]) for name, p in base.state_dict().items())
    assert not base.adaptations and all(p.requires_grad for p in base.parameters())
    head = 3 * (3 * 16 + 1)
    lora = 2 * 8 * ((16 + 48) + (16 + 16) + (16 + 64) + (64 + 16))  # layers x rank x (in + out)
    prefix = 2 * 2 * 16 * 16  # layers x (keys, values) x length x width
    few = {"full": SHAPE.n_parameters, "lora": lora, "prefix": prefix, "head": 0}[kind]
    assert tuned.trained == head + few
    assert 4 * tuned.trained <= tuned.bytes < 4 * tuned.trained + 8000  # fp32, and headers
    assert tuned.seconds > 0 and len(tuned.losses) == 12
    frame = tuned.predictor.predict(["bad dull awful film"], {})
    assert frame["label"][0] in json.loads((posts / "labels.json").read_text())
