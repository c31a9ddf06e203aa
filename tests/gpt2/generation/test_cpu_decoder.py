"""The quick step against the model."""

import pytest
import torch

from gpt2.generation import cpu_decoder, generate
from gpt2.generation.cpu_decoder import WORTHWHILE, decoder
from gpt2.model import adapters
from gpt2.model.config import AdaptationConfig, ModelConfig
from gpt2.model.transformer import GPT2, KVCache

SMALL = ModelConfig(vocab_size=300, n_positions=48, n_embd=32, n_layer=3, n_head=4, initializer_range=0.2)


def perturbed(config=SMALL):
    model = GPT2(config, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # biases and gains that matter
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-2])
def test_equals_the_model(rows, unequal, epsilon):
    model = perturbed(SMALL.model_copy(update={"layer_norm_epsilon": epsilon}))
    ids = torch.randint(300, (rows, 12), generator=torch.Generator().manual_seed(1))
    empty = torch.arange(rows) % 5 if unequal else torch.zeros(rows, dtype=torch.long)
    seen = torch.zeros(rows, 1, 1, 12).masked_fill(torch.arange(12) < empty[:, None, None, None], float("-inf"))
    caches = [KVCache(rows, 12, SMALL, model.wte.weight, seen if unequal else None) for _ in model.blocks]
    positions = (torch.arange(12) - empty[:, None]).clamp_min(0)
    caches[0].positions = positions[:, :6]
    with torch.inference_mode():
        model.hidden(ids[:, :6], caches)
        faster = decoder(model, rows, 100)
        for place in range(6, 12):
            found = faster.logits(ids[:, place], positions[:, place], caches)
            for i in range(rows):
                alone = model.logits(model.hidden(ids[i : i + 1, int(empty[i]) : place + 1]))[0, -1]
                torch.testing.assert_close(found[i], alone, rtol=1e-4, atol=1e-4)


def test_is_taken_where_it_can_be(monkeypatch):
    model = perturbed()
    assert decoder(model, 2, WORTHWHILE) is not None and decoder(model, 2, WORTHWHILE - 1) is None
    assert decoder(perturbed(SMALL.model_copy(update={"activation": "relu"})), 2, 100) is None
    with monkeypatch.context() as patch:
        patch.setattr(cpu_decoder, "LARGEST", SMALL.n_parameters - 1)
        assert decoder(model, 2, 100) is None
    assert decoder(perturbed().bfloat16(), 2, 100) is None
    prompts, known = [[1, 2, 3], [4]], {"temperature": 0, "stop_at_eot": False}
    quick = generate.generate(model, 299, prompts, 40, **known)
    monkeypatch.setattr(generate, "decoder", lambda *_: None)
    assert generate.generate(model, 299, prompts, 40, **known) == quick
    adapters.add(model, AdaptationConfig(kind="lora", rank=2))
    assert decoder(model, 2, 100) is None


def test_weights_are_those_of_now():
    """A model that has learned since writes what it would write now."""
    model, known = perturbed(), {"temperature": 0, "stop_at_eot": False}
    before = generate.generate(model, 299, [[1, 2, 3]], 40, **known)
    with torch.no_grad():
        for p in model.parameters():
            p.data = p.data.flip(0).contiguous() if p.ndim == 2 and p.shape[0] == 300 else p.data
    after = generate.generate(model, 299, [[1, 2, 3]], 40, **known)
    ids = [1, 2, 3]
    for token in after[0]:
        assert int(model.logits(model.hidden(torch.tensor([ids]))[0, -1]).argmax()) == token
        ids.append(token)
    assert before != after
