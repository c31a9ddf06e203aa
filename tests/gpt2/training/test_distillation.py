"""Distillation: the loss against its formula, what is trained, and a student that learns what its teacher knows."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from gpt2 import weights
from gpt2.data.tokenizer import Tokenizer
from gpt2.model.config import ModelConfig, ModelShape
from gpt2.model.heads import Classifier, pad
from gpt2.model.transformer import GPT2
from gpt2.tasks.sentiment.config import SentimentSettings
from gpt2.tasks.task import task
from gpt2.training.config import DistilConfig, OptimizerConfig, TrainConfig
from gpt2.training.distillation import Distilled, student
from gpt2.training.engine import TorchEngine
from gpt2.training.loop import fit
from gpt2.training_job import TrainingJob, build

TEACHER = ModelConfig(vocab_size=300, n_positions=32, n_embd=32, n_layer=4, n_head=4, dropout=0.1)
SHAPE = ModelShape(n_positions=32, n_embd=16, n_layer=1, n_head=2)
IDS, LENGTHS = pad([[5, 6, 7, 8], [1, 2], [3, 4, 5]])
LABELS = torch.tensor([0, 2, 1])


def config(**changes):
    return DistilConfig(**{"teacher": "x", "student": SHAPE, **changes})


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1.0), (4.0, 0.3), (2.0, 0.0)])
def test_the_loss_is_hinton_s(temperature, weight, known):
    """Against the sums written out; the soft part's gradient stays of one size at any temperature."""
    torch.manual_seed(0)
    teacher, learner = (
        Classifier(GPT2(TEACHER), 3, ngrams=known),
        Classifier(GPT2(ModelConfig(**SHAPE.model_dump(), vocab_size=300)), 3),
    )
    module = Distilled(learner, teacher, config(temperature=temperature, weight=weight)).eval()
    ngrams = torch.randn(len(LABELS), 3)
    p = ((teacher.logits(IDS, LENGTHS) + known * ngrams) / temperature).softmax(-1)
    q = ((learner.logits(IDS, LENGTHS) + ngrams) / temperature).softmax(-1)
    soft = (p * (p / q).log()).sum(-1).mean() * temperature**2
    hard = F.cross_entropy(learner.logits(IDS, LENGTHS) + ngrams, LABELS)
    loss = module(ids=IDS, lengths=LENGTHS, labels=LABELS, ngrams=ngrams)
    assert loss.item() == pytest.approx((weight * soft + (1 - weight) * hard).item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in learner.parameters())


def test_the_teacher_has_no_dropout():
    module = Distilled(Classifier(GPT2(TEACHER), 3, 0.0), Classifier(GPT2(TEACHER), 3), config()).train()
    assert module.student.training and not module.teacher.training and not module.teacher.model.training


def test_layers_from_the_teacher():
    teacher = GPT2(TEACHER, seed=1)
    shape = {**TEACHER.model_dump(exclude={"vocab_size"}), "n_layer": 2, "dropout": 0.0}
    model = student(teacher, config(student=shape, layers_from_teacher=True))
    for own, theirs in ((model.blocks[0], teacher.blocks[0]), (model.blocks[1], teacher.blocks[3])):
        assert all(torch.equal(p, q) for p, q in zip(own.parameters(), theirs.parameters(), strict=True))
    assert torch.equal(model.wte.weight, teacher.wte.weight) and torch.equal(model.wpe.weight, teacher.wpe.weight)
    with pytest.raises(ValueError, match=r"needs a student of the teacher's shape .* n_embd=32, n_head=4"):
        student(teacher, config(layers_from_teacher=True))
    with pytest.raises(ValueError, match=r"student.n_layer=5 is more than the teacher's 4"):
        student(teacher, config(student={**shape, "n_layer": 5}, layers_from_teacher=True))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A job whose teacher has learned the examples' labels."""
    folder, draw = tmp_path_factory.mktemp("distillation"), np.random.default_rng(0)
    moods = [["bad", "dull", "awful"], ["good", "fine", "lovely"]]
    label = draw.integers(2, size=400)
    texts = [f"the film {i} is {draw.choice(moods[y])} and {draw.choice(moods[y])}" for i, y in enumerate(label)]
    for split, part in (("train", slice(0, 300)), ("validation", slice(300, 400))):
        (folder / "examples").mkdir(exist_ok=True)
        pd.DataFrame({"text": texts[part], "label": label[part]}).to_parquet(folder / f"examples/{split}.parquet")
    (folder / "examples/labels.json").write_text('["negative", "positive"]')
    tokenizer = Tokenizer.train(texts, 300)
    tokenizer.save(folder / "tokenizer")
    weights.save(GPT2(TEACHER, seed=0), folder / "base")
    train = TrainConfig(
        steps=40, epochs=100, batch_size=32, micro_batch_size=32, context=32, precision="fp32", eval_samples=100,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5),
    )  # fmt: skip
    job = TrainingJob(
        name="sentiment", train=train, tokenizer=f"{folder}/tokenizer", output=str(folder), base=f"{folder}/base",
        examples=f"{folder}/examples",
    )  # fmt: skip
    learn(job, folder / "teacher")
    return job.model_copy(update={"distil": config(), "teacher": str(folder / "teacher")})


def learn(job, out):
    parts = build(job)
    with_journal = out.with_name(f"{out.name}-journal")
    with_journal.mkdir()
    result = fit(TorchEngine(parts.module, job.train, "cpu"), parts.training, parts.validation, job.train, with_journal)
    out.mkdir()
    parts.save(out)
    return result


def test_a_student_learns_from_its_teacher(job, tmp_path):
    """With soft targets alone: through the job, the loop, the engine and the files, to what people pull."""
    before = {p.name: p.read_bytes() for p in (tmp_path.parent / job.teacher).iterdir()}
    soft = job.model_copy(update={"distil": config(weight=1.0)})
    learn(soft, tmp_path / "student")
    teacher, found = (task("sentiment").predictor(path) for path in ((tmp_path / job.teacher), tmp_path / "student"))
    assert found.module.model.config == ModelConfig(**SHAPE.model_dump(), vocab_size=300)
    assert found.labels == ["negative", "positive"]
    texts = pd.read_parquet(f"{job.examples}/validation.parquet")
    right = found.probabilities(texts["text"]).argmax(1) == texts["label"]
    alike = found.probabilities(texts["text"]).argmax(1) == teacher.probabilities(texts["text"]).argmax(1)
    assert right.mean() > 0.95 and alike.mean() > 0.95
    assert before == {p.name: p.read_bytes() for p in (tmp_path.parent / job.teacher).iterdir()}


def test_what_does_not_fit_is_refused(job, tmp_path):
    Tokenizer.train([f"other words {i * i}" for i in range(900)], 300).save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"has another tokenizer than .*; give a teacher"):
        build(job.model_copy(update={"tokenizer": str(tmp_path / "other")}))
    examples = tmp_path / "examples"
    examples.mkdir()
    (examples / "labels.json").write_text(json.dumps(["positive", "negative"]))
    with pytest.raises(ValueError, match=r"the teacher knows the labels \['negative', 'positive'\], the examples"):
        build(job.model_copy(update={"examples": str(examples)}))
    wide = tmp_path / "wide"
    shutil.copytree(job.teacher, wide)
    (wide / "ngrams.safetensors").touch()
    with pytest.raises(
        ValueError, match=r"the teacher in .*wide has a linear model of n-grams, the examples have none"
    ):
        build(job.model_copy(update={"teacher": str(wide)}))
    with pytest.raises(ValueError, match="recommendation can't be distilled"):
        task("recommendation").load(tmp_path)


def test_settings():
    settings = {"source": "sample:posts", "distil": {"teacher": "models:/gpt2-sentiment@champion", "student": {}}}
    assert SentimentSettings.model_validate(settings).distil.temperature == 2.0
    with pytest.raises(ValueError, match="all of a student's parameters are trained; set kind: full"):
        SentimentSettings.model_validate({**settings, "adaptation": {"kind": "lora"}})
    settings["distil"]["student"] = {"n_positions": 64}
    with pytest.raises(ValueError, match=r"train.context=128 is longer than distil.student.n_positions=64"):
        SentimentSettings.model_validate(settings)
