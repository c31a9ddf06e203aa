"""Text as it comes against text as a whole; stop strings against a search in the whole text."""

import random

import pytest
import torch

from gpt2.data.tokenizer import Tokenizer
from gpt2.generation.generate import Pieces, Sampling, generate, stream, write
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train((f"the film number {i} of {i * i} was good, déjà vu 😀 and so on" for i in range(300)), 350)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = ModelConfig(vocab_size=350, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    return GPT2(config, seed=3).eval()


def continuation(model, tokenizer, prompt, count, **settings):
    return tokenizer.decode(generate(model, tokenizer.end_of_text, [tokenizer.encode(prompt)], count, **settings)[0])


def test_pieces_are_the_text(tokenizer):
    """Ids at random: bytes that are no UTF-8, characters of several tokens, the end-of-text as text."""
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.randrange(350) for _ in range(draw.randrange(30))]
        pieces = Pieces(tokenizer)
        assert "".join([*(pieces.add(i) for i in ids), pieces.end()]) == tokenizer.decode(ids)


def test_no_half_characters(tokenizer):
    ids = tokenizer.encode("日本語 😀 é")
    assert len(ids) > 9  # most characters are several tokens
    pieces = Pieces(tokenizer)
    assert "\ufffd" not in "".join([*(pieces.add(i) for i in ids), pieces.end()])
    half = Pieces(tokenizer)
    assert (half.add(tokenizer.encode("語")[0]), half.end()) == ("", "\ufffd")


def cut(text, stops):
    """Character by character: before the stop string that is complete first, the longest where several are."""
    for end in range(len(text) + 1):
        if found := [len(s) for s in stops if text[:end].endswith(s)]:
            return text[: end - max(found)]
    return text


def test_stop_strings_cut_exactly(tokenizer):
    """Wherever they begin and end within tokens, and whatever they have in common."""
    draw, text = random.Random(0), "the film was so so good, déjà vu 😀😀 and the film number 7 of 49"
    ids, cuts = tokenizer.encode(text), 0
    for _ in range(500):
        stops = []
        for _ in range(draw.randrange(1, 4)):
            start = draw.randrange(len(text))
            stops.append(text[start : start + draw.randrange(1, 9)] + draw.choice(["", "", "x"]))
        pieces, out = Pieces(tokenizer, stops), ""
        for i in ids:
            out += pieces.add(i)
            assert not any(stop in out for stop in stops) and text.startswith(out)
            if pieces.stopped:
                break
        assert out + pieces.end() == cut(text, stops)
        cuts += pieces.stopped
    assert 250 < cuts < 500


def test_only_what_may_be_a_stop_string_waits(tokenizer):
    pieces = Pieces(tokenizer, ["film number"])
    assert [pieces.add(tokenizer.encode(t)[0]) for t in "the"] == ["t", "h", "e"]
    out = "".join(pieces.add(i) for i in tokenizer.encode(" film nu"))
    assert out == " " and pieces.held == "film nu"
    assert pieces.add(tokenizer.encode("n")[0]) == "film nun"


@pytest.mark.parametrize("settings", [GREEDY, Sampling(seed=5, top_p=0.9, repetition_penalty=1.2)])
def test_written_and_streamed_are_generated(model, tokenizer, settings):
    prompts = ["the film", "good, so", ""]
    whole = write(model, tokenizer, prompts, 20, settings)
    known = {name: getattr(settings, name) for name in ("temperature", "top_p", "repetition_penalty")}
    for i, prompt in enumerate(prompts):
        ids = tokenizer.encode(prompt) or [tokenizer.end_of_text]
        expected = generate(model, tokenizer.end_of_text, [ids], 20, seed=settings.seed + i, **known)[0]
        assert whole[i] == [tokenizer.decode(expected)]
    parts = list(stream(model, tokenizer, prompts[0], 20, settings))
    assert "".join(parts) == whole[0][0] and len(parts) > 3 and all(parts)


def test_stop_strings_end_one_row_and_no_other(model, tokenizer):
    prompts, free = ["the film", "good, so"], []
    for prompt in prompts:
        free.append(write(model, tokenizer, [prompt], 30, GREEDY)[0][0])
    stop = free[0][5:9]
    assert stop not in free[0][:7]
    assert write(model, tokenizer, prompts, 30, GREEDY, [stop]) == [[cut(text, [stop])] for text in free]
    assert "".join(stream(model, tokenizer, prompts[0], 30, GREEDY, [stop])) == cut(free[0], [stop])


def test_several_samples(model, tokenizer):
    one, two = write(model, tokenizer, ["the film", "so"], 20, Sampling(seed=4), samples=3)
    assert len({*one, *two}) == 6
    assert two == write(model, tokenizer, ["so"], 20, Sampling(seed=7), samples=3)[0]
    assert two[1] == write(model, tokenizer, ["so"], 20, Sampling(seed=8))[0][0]


def test_truncates_only_when_asked_and_says_so(model, tokenizer):
    long = "the film was good, " * 30
    with pytest.raises(ValueError, match=r"prompt 0 has .* more than the model's 64 positions; shorten the prompt$"):
        write(model, tokenizer, [long], 20, GREEDY)
    with pytest.warns(UserWarning, match="prompt 0: only the last 44 tokens are read, .* model's 64 positions"):
        text = write(model, tokenizer, [long, "so"], 20, GREEDY, truncate=True)[0][0]
    ids = tokenizer.encode(long)[-44:]
    assert text == tokenizer.decode(generate(model, tokenizer.end_of_text, [ids], 20, temperature=0)[0])


def test_refused(model, tokenizer):
    with pytest.raises(ValueError, match="a stop string is empty"):
        write(model, tokenizer, ["so"], 5, stop=["x", ""])
    with pytest.raises(ValueError, match="samples=0"):
        write(model, tokenizer, ["so"], 5, samples=0)
    with pytest.raises(ValueError, match="the tokenizer has 350 ids, the model 300"):
        list(stream(GPT2(ModelConfig(vocab_size=300, n_embd=8, n_head=1)), tokenizer, "so", 5))


def test_stream_leaves_gradients_and_mode_alone(model, tokenizer):
    """Between two pieces the caller may train."""
    model.train()
    pieces = stream(model, tokenizer, "the film", 20, GREEDY)
    next(pieces)
    assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    pieces.close()
    model.eval()
