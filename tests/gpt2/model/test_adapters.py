"""Adapters: exact against plain arithmetic, alone on disk, several on one model, and nothing else changes."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from gpt2 import weights
from gpt2.generation.generate import generate
from gpt2.model import adapters as model_adapters
from gpt2.model.config import AdaptationConfig, ModelConfig
from gpt2.model.heads import Classifier
from gpt2.model.transformer import GPT2, KVCache, Packed
from gpt2.weights import adapters as weights_adapters

SMALL = ModelConfig(n_layer=2, n_head=2, n_embd=32, n_positions=24, vocab_size=300)
MODERN = ModelConfig.model_validate(
    {**SMALL.model_dump(), "positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False}
    | {"qk_norm": True, "value_residual": True, "tied_head": False}
)
LORA = AdaptationConfig(kind="lora", rank=4, alpha=8)
PREFIX = AdaptationConfig(kind="prefix", prefix_length=5)


@pytest.fixture(params=[SMALL, MODERN], ids=["gpt2", "modern"])
def model(request):
    return GPT2(request.param, seed=0).eval()


def changed(model: GPT2, name: str = model_adapters.NAME, seed: int = 1) -> GPT2:
    """The adapter as training might leave it."""
    generator = torch.Generator().manual_seed(seed)
    for _, module in model_adapters.carriers(model):
        if name in module.adapters:
            for parameter in module.adapters[name].parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def ids(rows=3, length=10):
    return torch.randint(0, 300, (rows, length), generator=torch.Generator().manual_seed(5))


def logits(model, tokens=None):
    with torch.no_grad():
        return model.logits(model.hidden(ids() if tokens is None else tokens))


def test_lora_changes_nothing_at_first(model):
    before = logits(model)
    model_adapters.add(model, LORA)
    assert torch.equal(logits(model), before)


def test_lora_is_the_sum_of_two_products():
    linear = torch.nn.Linear(7, 5)
    layer = model_adapters.LoRALinear(linear)
    layer.adapters["x"] = model_adapters.LowRank(7, 5, AdaptationConfig(kind="lora", rank=2, alpha=6))
    layer.active = "x"
    a, b = (p.data.normal_() for p in (layer.adapters["x"].a, layer.adapters["x"].b))
    x = torch.randn(4, 7)
    torch.testing.assert_close(layer(x), F.linear(x, linear.weight + 3 * b @ a, linear.bias))


def test_lora_drops_what_it_reads_in_training_alone(model):
    """A share of what enters the change, the rest scaled up (Hu et al. 2021); the matrix itself reads all of it."""
    model_adapters.add(model, AdaptationConfig(kind="lora", rank=4, alpha=8, dropout=0.4))
    layer = changed(model).blocks[0].mlp.fc
    change, x = layer.adapters[model_adapters.NAME], torch.randn(50, 32)
    matrix = 2 * change.b @ change.a
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight + matrix, layer.bias))
    torch.manual_seed(7)
    found = layer.train()(x)
    torch.manual_seed(7)
    read = x * torch.empty_like(x).bernoulli_(0.6) / 0.6
    torch.testing.assert_close(found, F.linear(x, layer.weight, layer.bias) + read @ matrix.T)
    model.eval()
    before = logits(model)
    assert not torch.allclose(logits(model.train()), before, atol=1e-4)
    assert torch.equal(logits(model.eval()), before)


@pytest.mark.parametrize("targets", [["attn.qkv"], ["mlp.fc", "mlp.proj"], ["attn.qkv", "attn.proj", "mlp.fc"]])
def test_merged_and_unmerged_are_the_same(model, targets):
    base = copy.deepcopy(model)
    model_adapters.add(model, AdaptationConfig(kind="lora", rank=4, alpha=8, targets=targets))
    changed(model)
    apart = logits(model)
    assert (apart - logits(base)).abs().max() > 1e-3
    model_adapters.merge(model)
    model_adapters.merge(model)  # again, no harm
    assert (logits(model) - apart).abs().max() <= 1e-6
    touched = {n for n, p in base.named_parameters() if not torch.equal(p, dict(model.named_parameters())[n])}
    assert touched == {f"blocks.{i}.{t}.weight" for i in range(2) for t in targets}
    model_adapters.unmerge(model)
    assert (logits(model) - apart).abs().max() <= 1e-6
    for name, parameter in base.named_parameters():
        assert (dict(model.named_parameters())[name] - parameter).abs().max() <= 1e-6


def test_several_adapters_on_one_model(model, tmp_path):
    before, told = logits(model), {}
    for seed, (name, config) in enumerate({"one": LORA, "two": PREFIX, "three": LORA}.items()):
        other = copy.deepcopy(model)
        model_adapters.add(other, config)
        told[name] = logits(changed(other, seed=seed))
        weights_adapters.save(other, tmp_path / name)
        assert {p.name for p in (tmp_path / name).iterdir()} == {"adapter.safetensors"}
    for name in told:
        weights_adapters.load(model, tmp_path / name, name)
    for name in ("two", "one", "three", "one"):
        model_adapters.use(model, name)
        torch.testing.assert_close(logits(model), told[name], rtol=0, atol=1e-6)
        model_adapters.merge(model)
    model_adapters.use(model, None)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-6)
    model_adapters.remove(model, "one"), model_adapters.remove(model, "two")
    model_adapters.use(model, "three")
    torch.testing.assert_close(logits(model), told["three"], rtol=0, atol=1e-6)
    model_adapters.remove(model, "three")
    assert list(model.state_dict()) == list(GPT2(model.config).state_dict())
    assert not any(isinstance(m, model_adapters.LoRALinear) for m in model.modules())


def test_a_saved_adapter_is_small():
    gpt2 = GPT2(ModelConfig(n_layer=1, vocab_size=257), seed=0)
    model_adapters.add(gpt2, AdaptationConfig(kind="lora"))
    size = sum(t.nbytes for t in model_adapters.tensors(gpt2).values())
    assert size * 12 < 6e6  # of the 124M model: 12 such layers
    assert size == 4 * 8 * sum(a + b for a, b in ((768, 2304), (768, 768), (768, 3072), (3072, 768)))


def test_prefix_is_attention_over_more_keys(model):
    """Against softmax attention written out, for rows, packed texts and a cache."""
    attention = model.blocks[0].attn
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 6, 2, 16, generator=generator) for _ in range(3))
    pk, pv = (torch.randn(5, 2, 16, generator=generator) for _ in range(2))
    from gpt2.model.transformer import attend_rows

    keys, values = (torch.cat([p.expand(2, -1, -1, -1), t], 1) for p, t in ((pk, k), (pv, v)))
    seen = torch.ones(6, 11).tril(5) > 0
    scores = torch.einsum("bthd,bshd->bhts", q, keys) / 4
    expected = torch.einsum("bhts,bshd->bthd", scores.masked_fill(~seen, -torch.inf).softmax(-1), values)
    torch.testing.assert_close(attend_rows(q, k, v, 0.0, (pk, pv)), expected)
    packed = Packed(torch.tensor([6, 4]))
    y = packed.attend(*(t[torch.tensor([[1] * 6, [1] * 4 + [0] * 2]) > 0] for t in (q, k, v)), 0.0, (pk, pv))
    torch.testing.assert_close(packed.pad(y)[1, :4], expected[1, :4])
    cache = KVCache(2, 6, SMALL, q)
    for t in range(6):
        cache.positions = torch.full((2, 1), t)
        y = cache.attend(*(x[:, t : t + 1] for x in (q, k, v)), 0.0, (pk, pv))
        torch.testing.assert_close(y[:, 0], expected[:, t])
    assert attention.active is None


def test_prefix_of_words_continues_them():
    """A prefix begins as a text that was read: without positions' part, rotary or none, the model can't tell."""
    model = GPT2(ModelConfig.model_validate({**SMALL.model_dump(), "n_layer": 1}), seed=0).eval()
    model.wpe.weight.data.zero_()
    torch.manual_seed(3)
    words = torch.randint(300, (1, 5))
    torch.manual_seed(3)
    model_adapters.add(model, PREFIX)
    with_prefix = logits(model)
    model_adapters.use(model, None)
    whole = logits(model, torch.cat([words.expand(3, -1), ids()], 1))
    torch.testing.assert_close(with_prefix, whole[:, 5:])


def test_a_model_with_a_prefix_writes_on(model):
    model_adapters.add(model, PREFIX)
    changed(model)
    prompt = ids(1, 6)[0].tolist()
    written = generate(model, 299, [prompt], 5, temperature=0, stop_at_eot=False)[0]
    for length in range(5):
        assert logits(model, torch.tensor([prompt + written[:length]]))[0, -1].argmax() == written[length]


@pytest.mark.parametrize("kind", ["full", "lora", "prefix", "head"])
def test_only_what_is_adapted_learns(model, kind):
    """One step, on packed texts: what is frozen keeps its bits, all else moves."""
    torch.manual_seed(0)
    module = Classifier(model, 3)
    config = {"lora": LORA, "prefix": PREFIX}.get(kind, AdaptationConfig(kind=kind))
    model_adapters.adapt(model, config)
    before = copy.deepcopy(dict(module.named_parameters()))
    for _ in range(2):  # A moves from the second step on: B is zero at first
        loss = module.train()(ids(), torch.tensor([10, 3, 7]), torch.tensor([0, 1, 2]))
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    heads = {"head.weight", "head.bias"}
    small = {n for n in before if ".adapters." in n}
    expected = {"full": set(before), "lora": heads | small, "prefix": heads | small, "head": heads}[kind]
    unused = {"model.head.weight", "model.blocks.0.attn.value_mix"}  # the first layer mixes its values with themselves
    assert moved - unused == expected - unused
    if kind != "full":
        assert model_adapters.trained_parameters(module) == sum(before[n].numel() for n in expected)
        assert {n for n, p in module.named_parameters() if p.requires_grad} == expected


def test_a_model_is_fine_tuned_with_the_dropout_that_is_asked_for(tmp_path):
    plain, dropped = GPT2(SMALL, seed=0), GPT2(SMALL.model_copy(update={"dropout": 0.3}), seed=0)
    outputs = {}
    for asked, model in (
        (None, plain),
        (None, dropped),
        (0.3, GPT2(SMALL, seed=0)),
        (0.0, GPT2(dropped.config, seed=0)),
    ):
        start = model.config.dropout
        model_adapters.adapt(model.train(), AdaptationConfig(model_dropout=asked))
        torch.manual_seed(5)
        outputs[start, asked] = model.hidden(ids()).detach()
    assert torch.equal(outputs[0.0, 0.3], outputs[0.3, None]) and torch.equal(outputs[0.3, 0.0], outputs[0.0, None])
    assert not torch.equal(outputs[0.0, None], outputs[0.3, None])
    with pytest.raises(ValueError, match="model_dropout is used with kind=full only"):
        AdaptationConfig(kind="lora", model_dropout=0.1)


def test_saved_models_are_plain_or_carry_their_prefix(model, tmp_path):
    for name, config in {"lora": LORA, "prefix": PREFIX}.items():
        adapted = copy.deepcopy(model)
        model_adapters.add(adapted, config)
        expected = logits(changed(adapted))
        weights.save(adapted, tmp_path / name)
        assert (tmp_path / name / "adapter.safetensors").exists()
        loaded = weights.load(tmp_path / name).eval()
        assert bool(loaded.adaptations) == (name == "prefix")
        torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(logits(adapted), expected, rtol=0, atol=0)  # as it was
        alone = copy.deepcopy(model)
        weights_adapters.load(alone, tmp_path / name)
        torch.testing.assert_close(logits(alone), expected, rtol=0, atol=1e-6)
    if model.config == SMALL:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lora").eval()
        weights_adapters.load(model, tmp_path / "lora")
        with torch.no_grad():
            assert (theirs(ids()).logits - logits(model)).abs().max() <= 1e-5


def test_what_does_not_fit_is_refused(tmp_path):
    model, other = GPT2(SMALL, seed=0), GPT2(ModelConfig(**{**SMALL.model_dump(), "n_embd": 16}), seed=0)
    model_adapters.add(other, LORA)
    weights_adapters.save(other, tmp_path)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=r"adapter.safetensors: 'blocks.0.attn.qkv.a' is \(4, 16\), the model needs"):
        weights_adapters.load(model, tmp_path)
    assert list(model.state_dict()) == before and not model.adaptations
    weights_adapters.save(changed(other), tmp_path / "deep")
    shallow = GPT2(ModelConfig(**{**SMALL.model_dump(), "n_embd": 16, "n_layer": 1}), seed=0)
    with pytest.raises(
        ValueError, match=r"has the unexpected tensor 'blocks\.1.* and 7 more; was it made on a model of"
    ):
        weights_adapters.load(shallow, tmp_path)
    with pytest.raises(ValueError, match=r"rank=33 is more than blocks\.0\.attn\.qkv has, 32; lower"):
        model_adapters.add(model, AdaptationConfig(kind="lora", rank=33))
    with pytest.raises(ValueError, match="is missing; give a directory with an adapter"):
        weights_adapters.load(model, tmp_path / "nowhere")
    found, settings = load_file(tmp_path / "deep" / "adapter.safetensors"), json.dumps(LORA.identity())
    name, fitting = "blocks.0.attn.qkv.b", GPT2(other.config, seed=0)
    for wrong, metadata, told in (
        (found[name].int(), settings, f"'{name}' holds torch.int32, not floating point numbers"),
        (found[name] * torch.nan, settings, f"'{name}' holds numbers from nan to nan, which are not finite"),
        (found[name], "[" * 100_000, "can't be read as an adapter: .*; was it made by another tool"),
        (
            found[name],
            '{"kind": "lora", "rank": "x"}',
            r"adapter\.safetensors: rank='x': Input should be a valid integer",
        ),
    ):
        save_file({**found, name: wrong}, tmp_path / "adapter.safetensors", metadata={"adaptation": metadata})
        with pytest.raises(ValueError, match=told):
            weights_adapters.load(fitting, tmp_path)
        assert not fitting.adaptations
    (tmp_path / "adapter.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="can't be read as an adapter"):
        weights_adapters.load(model, tmp_path)
    model_adapters.add(model, LORA, "mine")
    with pytest.raises(ValueError, match="already"):
        model_adapters.add(model, LORA, "mine")
    with pytest.raises(ValueError, match="no adapter 'yours'; it has mine"):
        model_adapters.use(model, "yours")
    with pytest.raises(ValueError, match=r"can't be called 'a\.b'"):
        model_adapters.add(model, LORA, "a.b")


def test_settings_without_effect_are_refused():
    with pytest.raises(ValueError, match="rank is used with kind=lora only, not with kind=full; set kind: lora"):
        AdaptationConfig(rank=4)
    with pytest.raises(ValueError, match="prefix_length is used with kind=prefix only"):
        AdaptationConfig(kind="lora", prefix_length=4)
    with pytest.raises(ValueError, match="names a matrix twice"):
        AdaptationConfig(kind="lora", targets=["mlp.fc", "mlp.fc"])
    again = AdaptationConfig.model_validate(json.loads(LORA.model_dump_json()))
    assert again == LORA and set(LORA.identity()) == {"kind", "rank", "alpha", "dropout", "targets"}
    assert AdaptationConfig(kind="head").identity() == {"kind": "head"}


def test_half_precision_files_are_read(tmp_path):
    model = GPT2(SMALL, seed=0).to(torch.bfloat16)
    model_adapters.add(model, LORA)
    weights_adapters.save(model, tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "adapter.safetensors").values()} == {torch.float32}
