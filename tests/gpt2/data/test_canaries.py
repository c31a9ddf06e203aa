"""Canaries are where they belong, as often as was asked, whatever the order of documents; exposure is what it says."""

import math
import random
import tempfile
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import skewnorm

from gpt2 import weights
from gpt2.data import canaries as data_canaries
from gpt2.data import config as data_config
from gpt2.data import corpus, shards
from gpt2.data.batches import TokenDataset
from gpt2.data.canaries import Canary
from gpt2.data.config import END_OF_TEXT, SPACE, CanaryConfig
from gpt2.data.shards import TokenStream
from gpt2.data.splits import content_digest, is_validation
from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation import report
from gpt2.model.config import ModelConfig
from gpt2.model.heads import LanguageModel
from gpt2.model.transformer import GPT2
from gpt2.tasks.base import exposure
from gpt2.training.config import TrainConfig
from gpt2.training.engine import TorchEngine
from gpt2.training.loop import fit
from tests.conftest import sentence

SHARE = 0.3


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([sentence(random.Random(0), 200)], 260)


def encoded(folder, pieces, config, tokenizer, share=SHARE):
    """The documents of both splits, in order, as they are in the shards of some (texts, kept) pieces."""
    paths, masks = [], [np.array(keep, dtype=bool) for _, keep in pieces]
    for number, (texts, _) in enumerate(pieces):
        paths.append(folder / f"{number}.parquet")
        corpus.write_piece(texts, paths[-1])
    digests = (data_canaries.training_digests(p, m, share) for p, m in zip(paths, masks, strict=True))
    found = {"train": [], "validation": []}
    for path, keep, after in zip(paths, masks, data_canaries.places(config, digests), strict=True):
        rows = data_canaries.plant(path, keep, after, folder / "planted.parquet")
        info = shards.encode_piece(folder / "planted.parquet", np.ones(rows, bool), tokenizer, "uint16", share, folder)
        for split, documents in found.items():
            stream = TokenStream([folder / f"{split}.bin"], "uint16")
            assert info[f"{split}_tokens"] == len(stream)
            documents += tokenizer.decode(stream.read(0, len(stream)).tolist()).split(END_OF_TEXT)[:-1]
    return found


def followed(documents, planted):
    """{canary: the documents that it comes after}; those between them are canaries too."""
    found, before = {text: [] for text in planted}, None
    for document in documents:
        if document in found:
            found[document].append(before)
        else:
            before = document
    return found


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.text("abc é\n", min_size=1, max_size=8), min_size=12, max_size=40, unique_by=corpus.normalise),
    st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True),
    st.integers(1, 3),
    st.integers(0, 2**31 - 1),
    st.data(),
)
def test_as_often_as_asked_in_training_text_alone_whatever_the_order(tokenizer, texts, repeats, count, seed, data):
    texts = [f"{i} {text}" for i, text in enumerate(texts)]
    kept = {text: data.draw(st.booleans()) or i < 10 for i, text in enumerate(texts)}
    config = CanaryConfig(count=count, repeats=repeats, seed=seed)
    training = [t for t in texts if kept[t] and not is_validation(content_digest(t), SHARE)]
    planted = {c.text: c.repeats for c in data_canaries.canaries(config)}
    assert len(planted) == count * len(repeats) and Counter(planted.values()) == dict.fromkeys(repeats, count)
    results = []
    for order in (texts, data.draw(st.permutations(texts))):
        cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=3)))
        parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
        pieces = [(part, [kept[t] for t in part]) for part in parts if part]
        with tempfile.TemporaryDirectory() as folder:
            if len(training) < max(repeats):
                with pytest.raises(ValueError, match=f"only {len(training)} training documents"):
                    encoded(Path(folder), pieces, config, tokenizer)
                return
            found = encoded(Path(folder), pieces, config, tokenizer)
        # The corpus's own documents are as they would be without.
        own = [t for t in order if kept[t]]
        assert found["validation"] == [t for t in own if is_validation(content_digest(t), SHARE)]
        assert [t for t in found["train"] if t not in planted] == [t for t in own if t in training]
        assert Counter(t for t in found["train"] if t in planted) == planted
        after = followed(found["train"], planted)
        assert all(len(set(places)) == len(places) for places in after.values())  # each copy somewhere else
        results.append({text: sorted(places) for text, places in after.items()})
    assert results[0] == results[1]


def test_places_by_brute_force():
    texts = [f"document {i}" for i in range(500)]
    marks = [content_digest(t) for t in texts]
    config = CanaryConfig(count=4, repeats=[1, 30], seed=9)

    def mixed(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    expected = {}
    for canary in data_canaries.canaries(config):
        name = f"9/{canary.repeats}/{canary.text}".encode()
        key = int.from_bytes(blake2b(name, digest_size=8).digest(), "little")
        nearest = sorted(marks, key=lambda m: mixed(int.from_bytes(m[8:], "little") ^ key))
        for mark in nearest[: canary.repeats]:
            expected.setdefault(mark, []).append(canary.text)
    digests = np.frombuffer(b"".join(marks), dtype=[("low", "<u8"), ("high", "<u8")])
    assert data_canaries.places(config, [digests]) == [expected]
    halves = data_canaries.places(config, [digests[:7], digests[7:7], digests[7:]])
    assert halves[0] | halves[2] == expected and not halves[1] and not halves[0].keys() & halves[2].keys()


@given(st.floats(1e-6, 0.5), st.integers(0, 2**32 - 1))
def test_the_split_is_the_corpus_s(share, seed):
    generator = np.random.default_rng(seed)
    low = np.append(generator.integers(0, 2**64, 50, dtype=np.uint64), np.uint64(math.ceil(share * 2**64)))
    marks = [int(x).to_bytes(8, "little") * 2 for x in (*low, low[-1] - np.uint64(1))]
    digests = np.frombuffer(b"".join(marks), dtype=[("low", "<u8"), ("high", "<u8")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_canaries, "read_digests", lambda piece: digests)
        found = data_canaries.training_digests(Path(), np.ones(len(marks), bool), share)
    assert [m.tobytes() for m in found] == [m for m in marks if not is_validation(m, share)]
    assert not is_validation(data_config.TRAINED, share)


def test_canaries_follow_from_the_seed_and_are_all_different():
    config = CanaryConfig(count=5, repeats=[10, 1], seed=4)
    planted, controls, others = data_canaries.everything(config, 300)
    assert config.repeats == [1, 10] and config.copies == 55
    assert data_canaries.everything(CanaryConfig(count=5, repeats=[1, 10], seed=4), 300) == (planted, controls, others)
    assert len({*(c.text for c in planted), *(c.text for c in controls), *others}) == 10 + 5 + 300
    assert {c.repeats for c in controls} == {0}
    more = data_canaries.canaries(CanaryConfig(count=5, repeats=[1, 3, 10], seed=4))
    assert [c for c in more if c.repeats != 3] == planted
    assert not {c.text for c in planted} & {c.text for c in data_canaries.canaries(CanaryConfig(count=5, seed=5))}
    assert data_canaries.canaries(CanaryConfig()) == []
    text = data_canaries.text_of(123)
    assert text == "The secret number is 0 0 0 0 0 0 1 2 3." and len(text) + 1 == data_config.LONGEST
    # A space that is nearly all taken still gives what is left.
    taken = set(range(97))
    assert sorted(data_canaries.drawn(0, "x", 3, taken, 100)) == [97, 98, 99]


@pytest.mark.parametrize(("values", "told"), [
    ({"count": -1}, "greater than or equal to 0"), ({"repeats": []}, "at least 1"), ({"repeats": [3, 3]}, "different"),
    ({"repeats": [0, 3]}, "each 1 or more"), ({"count": 1000}, "111,000 planted documents, more than 100,000"),
    ({"counts": 1}, "not permitted"),
])  # fmt: skip
def test_wrong_settings_are_refused(values, told):
    with pytest.raises(ValidationError, match=told):
        CanaryConfig(**values)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=60), st.lists(st.integers(-1, 41), min_size=1, max_size=5))
def test_exposure_is_exact_where_all_others_are_known(others, mine):
    """Against the definition: log2 of the space less log2 of the rank, ties before."""
    space = len(others) + 1
    found = exposure.exposures(np.array(mine, float), np.array(others, float), space)
    ranks = [1 + sum(other <= x for other in others) for x in mine]
    assert found == pytest.approx([math.log2(space) - math.log2(rank) for rank in ranks])


@pytest.mark.parametrize("skew", [-3, 0, 3])
def test_exposure_by_a_sample_is_that_of_the_whole_space(skew):
    """On average over samples, from where they tell the rank to far beyond them."""
    bits = np.array([3, 6, 9, 14, 20, 26])
    losses = skewnorm.ppf(2.0**-bits, skew, loc=30, scale=2)
    generators = [np.random.default_rng(i) for i in range(8)]
    samples = [skewnorm.rvs(skew, loc=30, scale=2, size=exposure.REFERENCES, random_state=g) for g in generators]
    found = np.mean([exposure.exposures(losses, sample, SPACE) for sample in samples], axis=0)
    assert (np.abs(found - bits) < 0.2 + 0.08 * bits).all(), found


def test_exposure_ends_at_the_size_of_the_space():
    references = np.random.default_rng(0).normal(30, 1, 1000)
    assert exposure.exposures(np.array([-500.0]), references, SPACE)[0] == math.log2(SPACE)
    assert exposure.exposures(np.array([5.0]), np.full(99, 5.0), SPACE)[0] == 0  # a model that knows nothing


def test_intervals_hold_the_mean_and_are_left_out_where_they_say_nothing():
    generator = np.random.default_rng(0)
    truth = exposure.CHANCE
    held = 0
    for _ in range(60):
        low, high = exposure.interval(generator.exponential(truth, 20))
        held += low < truth < high
    assert 48 <= held <= 60
    assert exposure.interval(np.array([1.0, 2.0, 3.0, 4.0])) is None and exposure.interval(np.full(9, 29.9)) is None


def test_losses_are_the_model_s(tokenizer):
    """One text at a time, against the whole distribution."""
    import torch

    model = GPT2(ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=48, vocab_size=260), seed=1).eval()
    texts = ["a", "ab film", data_canaries.text_of(1), "x" * 40]
    found = exposure.text_losses(model, tokenizer, texts)
    for text, loss in zip(texts, found, strict=True):
        ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
        with torch.no_grad():
            logs = model.logits(model.hidden(torch.tensor([ids]))).log_softmax(-1)[0]
        assert loss == pytest.approx(-sum(float(logs[i, ids[i + 1]]) for i in range(len(ids) - 1)), rel=1e-5)
    with pytest.raises(ValueError, match="n_positions=48"):
        exposure.text_losses(model, tokenizer, ["x" * 60])


def chinese(generator: random.Random) -> str:
    """A sentence with a number in digits of full width, without a space or a letter of ASCII."""
    words = ["这部电影", "我们", "昨天", "看了", "非常", "好看", "演员", "故事", "有点", "无聊", "结局", "出人意料"]
    return "".join([*generator.choices(words, k=5), *generator.choices("０１２３４５６７８９", k=2), "。"])


@pytest.fixture(scope="module", params=["english", pytest.param("chinese", marks=pytest.mark.slow)])
def trained(tmp_path_factory, request):
    """A small model that has read a canary 50 times, in English or in a script without spaces: (folder, settings)."""
    folder, generator = tmp_path_factory.mktemp("trained"), random.Random(0)
    texts = [" ".join([sentence(generator), *generator.choices("0123456789", k=4)]) for _ in range(120)]
    if request.param == "chinese":
        texts = [chinese(generator) for _ in range(120)]
    config = CanaryConfig(count=1, repeats=[50])
    tokenizer = Tokenizer.train(texts, 300)
    documents = encoded(folder, [(texts, [True] * len(texts))], config, tokenizer, 0.1)
    stream = TokenStream([folder / "train.bin"], "uint16")
    held_out = TokenDataset(TokenStream([folder / "validation.bin"], "uint16"), 64)
    assert sum(t.startswith(data_config.PHRASE) for t in documents["train"]) == 50
    steps = (len(stream) - 1) // 64  # all of it, once
    optimizer = {"kind": "muon", "learning_rate": 0.02, "warmup_steps": 2}
    train = TrainConfig(
        steps=steps, batch_size=1, micro_batch_size=1, context=64, optimizer=optimizer, eval_samples=1,
        precision="fp32",
    )  # fmt: skip
    model = GPT2(ModelConfig(n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=300), seed=0)
    fit(TorchEngine(LanguageModel(model), train, "cpu"), TokenDataset(stream, 64), held_out, train, folder)
    weights.save(model, folder / "model")
    tokenizer.save(folder / "model")
    return folder / "model", config


def test_what_was_read_fifty_times_is_exposed_and_what_was_never_read_is_not(trained, tmp_path):
    folder, config = trained
    facts = exposure.measured(folder, config, 1.0)
    never, often = facts["groups"]
    assert (never["repeats"], often["repeats"], often["canaries"]) == (0, 50, 1)
    assert often["exposure"] == often["largest"] > 9 and often["interval"] is None
    # Texts that were never read, many of them: on average as if their rank were any.
    model, tokenizer = weights.load(folder).eval(), Tokenizer.load(folder)
    others = data_canaries.everything(config, 900)[2]
    losses = exposure.text_losses(model, tokenizer, others)
    assert 1.1 < exposure.exposures(losses[:300], losses[300:], SPACE).mean() < 1.9
    # A model that never read it does not know it.
    fresh = GPT2(model.config, seed=3)
    weights.save(fresh, tmp_path)
    tokenizer.save(tmp_path)
    assert exposure.measured(tmp_path, config, None)["groups"][1]["exposure"] < 7


GROUPS = [
    {"repeats": 0, "canaries": 8, "exposure": 1.5, "interval": [0.7, 2.5], "largest": 4.0},
    {"repeats": 1, "canaries": 8, "exposure": 2.5, "interval": None, "largest": 5.0},
    {"repeats": 100, "canaries": 8, "exposure": 21.25, "interval": [18.0, 24.0], "largest": 29.9},
]


@pytest.mark.parametrize("passes", [None, 0.25])
def test_the_report_says_what_it_means(tmp_path, passes):
    facts = {"space": SPACE, "references": 1024, "most": math.log2(SPACE), "passes": passes, "groups": GROUPS}
    content = {
        "task": "base", "title": "T", "primary": {"name": "bits_per_byte", "higher_is_better": False},
        "floor": "unigram", "metrics": {"bits_per_byte": 1.0}, "baselines": {"unigram": {"bits_per_byte": 2.0}},
        "counts": {"validation_tokens": 9}, "samples": {}, "figures": [], "remarks": ["before"],
    }  # fmt: skip
    made = report.write(exposure.attached(content, facts), tmp_path)
    assert made["metrics"]["canary_exposure"] == made["metrics"]["canary_exposure_100"] == 21.25
    assert made["metrics"]["canary_exposure_1"] == 2.5 and "canary_exposure_0" not in made["metrics"]
    assert made["canaries"] == facts and made["remarks"][0] == "before"
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    for shown in (page, text):
        assert exposure.HEADING in shown and "18.00 to 24.00" in shown
        assert "planted 100 times in the training text" in shown and "have an exposure of 21.2 bits" in shown
        assert "1.4 bits on average" in shown and "At 29.9 bits" in shown
        assert ("read about 25.0 times" in shown) is (passes is not None)


def test_a_canary_is_a_text_with_its_repeats():
    assert data_canaries.canaries(CanaryConfig(count=1, repeats=[7]))[0] == Canary(
        data_canaries.text_of(data_canaries.drawn(0, "planted 7", 1, set())[0]), 7
    )
