"""Wrong settings are refused early, naming field, value and remedy."""

import subprocess
import sys
import time

import pytest

from flows.config import InvalidConfig, PipelineConfig, merged, parse_change, preset_names, resolve
from flows.plan import make_plan
from gpt2.model.config import SWITCHES

CASES = [
    # (change, what the message must hold)
    ("pretrain.stepz=5", ["pretrain.stepz", "did you mean 'steps'"]),
    ("pretain.steps=5", ["pretain", "did you mean 'pretrain'"]),
    ("pretrain.optimizer.lr=1", ["pretrain.optimizer.lr", "no such setting"]),
    ("pretrain.optimizer.learning_rate=-0.001", ["learning_rate = -0.001", "greater than 0"]),
    ("pretrain.optimizer.learning_rate=0", ["learning_rate", "greater than 0"]),
    ("pretrain.optimizer.learning_rate=.nan", ["learning_rate = nan", "finite"]),
    ("pretrain.optimizer.learning_rate=.inf", ["learning_rate", "finite"]),
    ("pretrain.optimizer.learning_rate=fast", ["learning_rate = 'fast'", "number"]),
    ("pretrain.optimizer.learning_rate=2", ["learning_rate = 2", "less than or equal to 1"]),
    ("pretrain.optimizer.warmup_steps=100000", ["warmup_steps=100000", "longer than", "at most"]),
    ("pretrain.optimizer.warmup_steps=-1", ["warmup_steps = -1"]),
    ("pretrain.optimizer.schedule=linear", ["schedule = 'linear'", "'cosine'"]),
    ("pretrain.optimizer.beta2=1", ["beta2 = 1", "less than 1"]),
    ("pretrain.optimizer.final_ratio=1.5", ["final_ratio"]),
    ("pretrain.optimizer.weight_decay=-1", ["weight_decay"]),
    ("pretrain.optimizer.clip=-1", ["clip"]),
    ("pretrain.optimizer.epsilon=0", ["epsilon"]),
    ("pretrain.optimizer.decay_share=0", ["decay_share"]),
    ("pretrain.steps=0", ["pretrain.steps = 0", "greater than or equal to 1"]),
    ("pretrain.steps=1.5", ["pretrain.steps = 1.5", "integer"]),
    ("pretrain.steps=null", ["neither steps nor epochs"]),
    ("pretrain.epochs=-1", ["pretrain.epochs = -1"]),
    ("pretrain.epochs=.nan", ["pretrain.epochs = nan"]),
    ("pretrain.context=512", ["context=512", "n_positions=256", "lower"]),
    ("pretrain.context=4", ["context = 4"]),
    ("pretrain.batch_size=30", ["batch_size=30", "not divisible"]),
    ("pretrain.micro_batch_size=3", ["micro_batch_size=3", "not divisible"]),
    ("pretrain.micro_batch_size=0", ["micro_batch_size = 0"]),
    ("cluster.num_workers=3", ["batch_size=16", "num_workers=3", "multiple of 24"]),
    ("cluster.num_workers=0", ["cluster.num_workers = 0"]),
    ("cluster.zero_stage=4", ["cluster.zero_stage = 4"]),
    ("cluster.offload_parameters=true", ["offload_parameters", "set zero_stage to 3"]),
    ("cluster.deepspeed.zero_optimization.stage=3", ["deepspeed.zero_optimization.stage=3", "set cluster.zero_stage"]),
    ("cluster.deepspeed.optimiser={type: Lion}", ["deepspeed.optimiser.type", "is no key that is passed on"]),
    ("cluster.deepspeed=5", ["cluster.deepspeed = 5", "dictionary"]),
    ("cluster.deepspeed.zero_optimization.reduce_bucket_size=5e7", None),
    ("gate.must_beat=[item-KNN]", ["'item-KNN': is not a baseline of any model", "did you mean 'item-kNN'"]),
    ("cluster.use_gpu=perhaps", ["cluster.use_gpu = 'perhaps'"]),
    ("cluster.max_failures=-1", ["max_failures"]),
    ("pretrain.precision=fp8", ["precision = 'fp8'", "'bf16'"]),
    ("pretrain.precision=fp16", ["fp16: needs a GPU", "bf16"]),
    ("pretrain.seed=-1", ["seed = -1"]),
    ("pretrain.checkpoint_every=0", ["checkpoint_every = 0"]),
    ("pretrain.keep_checkpoints=0", ["keep_checkpoints = 0"]),
    ("pretrain=5", ["pretrain = 5"]),
    ("model.n_embd=250", ["n_embd=250", "n_head=4", "multiple of 4"]),
    ("model.n_layer=0", ["model.n_layer = 0"]),
    ("model.dropout=1", ["model.dropout = 1"]),
    ("model.n_positions=128", ["context=256", "n_positions=128"]),
    ("tokenizer.vocab_size=100", ["vocab_size = 100", "300"]),
    ("tokenizer.vocab_size=70000", None),  # fits: auto takes uint32
    ("tokenizer.kind=gpt2", ["50257"]),
    ("tokenizer.kind=wordpiece", ["tokenizer.kind = 'wordpiece'"]),
    ("corpus.sources=[]", ["corpus.sources"]),
    ("corpus.validation_share=0", ["validation_share = 0"]),
    ("corpus.validation_share=0.9", ["validation_share = 0.9"]),
    ("corpus.max_bad_share=2", ["max_bad_share = 2"]),
    ("corpus.min_chars=2000000", ["min_chars=2000000", "max_chars"]),
    ("corpus.text_field=", ["text_field"]),
    ("canaries.count=-1", ["canaries.count = -1", "greater than or equal to 0"]),
    ("canaries.repeats=[5, 5]", ["canaries.repeats = [5, 5]", "different numbers"]),
    ("canaries.repeat=[5]", ["canaries.repeat", "did you mean 'repeats'"]),
    ("canaries={count: 1000, repeats: [1000]}", ["1,000,000 planted documents", "lower count or repeats"]),
    ("refresh.replay_share=1", ["refresh.replay_share = 1", "0.95"]),
    ("refresh.epochs=0", ["refresh.epochs = 0"]),
    ("refresh.warmup_share=2", ["refresh.warmup_share = 2"]),
    ("refresh.min_new_document=5", ["did you mean 'min_new_documents'"]),
    ("tasks.sentimnt.enabled=true", ["tasks.sentimnt", "did you mean 'sentiment'"]),
    ("tasks.sentiment.enabled=perhaps", ["tasks.sentiment.enabled"]),
    ("tasks.sentiment.train.batch_size=31", ["batch_size=31"]),
    ("nonsense", ["--set 'nonsense'", "section.field=value"]),
    ("=5", ["--set '=5'"]),
    ("pretrain.steps=[1", ["not a YAML value"]),
]


@pytest.mark.parametrize(("change", "expected"), CASES, ids=[c for c, _ in CASES])
def test_wrong_setting_is_refused(change, expected):
    if expected is None:
        resolve("laptop", None, [change])
        return
    with pytest.raises(InvalidConfig) as caught:
        resolve("laptop", None, [change])
    for part in expected:
        assert part in str(caught.value)


def test_a_context_shorter_than_a_canary_is_refused():
    short = ["pretrain.context=32"]
    resolve("smoke", None, short)
    with pytest.raises(InvalidConfig, match=r"pretrain\.context=32: is shorter than a canary.*canaries\.count to 0"):
        resolve("smoke", None, [*short, "canaries.count=1"])


def test_without_canaries_every_key_is_as_before():
    def keys(*changes):
        return {what: key for _, what, key in make_plan(resolve("smoke", None, changes)).by_stage()}

    plain = keys()
    assert {w: k.id for w, k in keys("canaries.seed=7", "canaries.repeats=[2]").items()} == {
        w: k.id for w, k in plain.items()
    }
    assert plain["tokens"].spec == {"dtype": "uint16", "validation_share": 0.02}
    for key in plain.values():
        assert not {"gpt2.data.canaries", "gpt2.tasks.base.exposure"} & set(key.code)
    planted = keys("canaries.count=1")
    same = {what for what in plain if plain[what].id == planted[what].id}
    assert same == {
        "documents of sample:reviews",
        "corpus",
        "tokenizer",
        "sentiment examples",
        "recommendation examples",
    }
    assert {"gpt2.data.canaries", "gpt2.tasks.base.exposure"} <= set(planted["base report"].code)
    assert keys("canaries.count=1", "canaries.seed=7")["tokens"].id != planted["tokens"].id
    assert keys("canaries.count=1", "canaries.repeats=[100, 10, 1]")["tokens"].id == planted["tokens"].id


def test_deepspeeds_keys_count_in_an_id_where_they_change_the_model():
    def trained(*changes):
        plan = make_plan(resolve("smoke", None, changes))
        return [plan.base.id, *(keys.model.id for keys in plan.tasks.values())]

    plain = trained()
    assert trained("cluster.deepspeed.zero_optimization.reduce_bucket_size=5e7") == plain
    rounded = trained("cluster.deepspeed.communication_data_type=bf16")
    assert not set(rounded) & set(plain)


def test_uint16_must_hold_the_vocabulary():
    changes = ["tokenizer.vocab_size=70000", "tokenizer.token_dtype=uint16"]
    with pytest.raises(InvalidConfig, match="does not fit token_dtype=uint16"):
        resolve("laptop", None, changes)


def test_all_errors_are_told_at_once():
    with pytest.raises(InvalidConfig) as caught:
        resolve("laptop", None, ["pretrain.steps=0", "model.n_layer=0", "cluster.zero_stage=9"])
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/no/such/file.txt", ["corpus.sources", "/no/such/file.txt"]),
        ("sample:rewiews", ["corpus.sources", "rewiews", "reviews"]),
        ("pyproject.toml", ["corpus.sources", "pyproject.toml"]),
    ],
)
def test_wrong_source_is_refused(source, expected):
    with pytest.raises(InvalidConfig) as caught:
        make_plan(resolve("laptop", None, [f"corpus.sources=[{source!r}]"]))
    for part in expected:
        assert part in str(caught.value)


def test_missing_labelled_data_is_refused():
    with pytest.raises(InvalidConfig, match=r"tasks\.sentiment\.source.*nothing\.csv"):
        make_plan(resolve("laptop", None, ["tasks.sentiment.source=/nothing.csv"]))


def test_presets_are_valid_and_named_in_the_refusal():
    for name in preset_names():
        assert isinstance(resolve(name), PipelineConfig)
    with pytest.raises(InvalidConfig, match="did you mean 'laptop'"):
        resolve("labtop")


@pytest.mark.parametrize("content", ["- a\n", "a: [\n", "text"])
def test_config_file_that_is_none(tmp_path, content):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(InvalidConfig, match=r"c\.yaml"):
        resolve("laptop", path)


def test_order_preset_file_changes(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("pretrain: {steps: 111, log_every: 3}\n")
    config = resolve("laptop", path, ["pretrain.steps=222"])
    assert (config.pretrain.steps, config.pretrain.log_every) == (222, 3)


def test_changes_nest():
    assert parse_change("a.b.c=1e-3") == {"a": {"b": {"c": 0.001}}}
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def test_the_command_refuses_within_two_seconds(tmp_path):
    """The whole process, started cold, without Ray, PyTorch or Prefect."""
    command = [sys.executable, "-m", "flows.cli", "run", "--set", "pretrain.steps=0"]
    subprocess.run(command, capture_output=True, check=False, cwd=tmp_path)  # byte code is compiled once
    times = []
    for _ in range(3):
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        times.append(time.monotonic() - started)
        assert done.returncode == 2
        assert "pretrain.steps = 0" in done.stderr
        assert "Traceback" not in done.stderr
    imports = subprocess.run(
        [sys.executable, "-X", "importtime", *command[1:]], capture_output=True, text=True, check=False, cwd=tmp_path
    ).stderr
    loaded = {line.rsplit("|", 1)[-1].strip() for line in imports.splitlines() if "|" in line}
    assert not loaded & {"torch", "ray", "prefect", "mlflow", "deepspeed", "pandas"}


@pytest.mark.parametrize(("published", "modern"), [("gpt2", "modern"), ("laptop", "laptop-modern")])
def test_a_modern_preset_has_the_size_and_the_data_of_its_peer(published, modern):
    a, b = resolve(published), resolve(modern)
    sizes = [config.model_config_with_vocabulary().n_parameters for config in (a, b)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
    assert not a.model.beyond_gpt2() and b.model.beyond_gpt2()
    same = {name for name in type(a.model).model_fields if getattr(a.model, name) == getattr(b.model, name)}
    assert type(a.model).model_fields.keys() - same <= {*SWITCHES, "zero_init"}  # each a field of its own
    left = {"model": ..., "pretrain": {"optimizer"}}
    assert a.model_dump(exclude=left) == b.model_dump(exclude=left)
