"""A registered model's text in a terminal and in a pipe."""

import io

import pytest
from rich.console import Console

from flows.commands.use import show
from gpt2 import load, weights
from gpt2.data.tokenizer import Tokenizer
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.tasks.base.kind import DEFAULTS


class Terminal(io.StringIO):
    """Keeps what was written each time."""

    def __init__(self):
        super().__init__()
        self.parts = []

    def write(self, text):
        self.parts.append(text)
        return super().write(text)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train((f"the film number {i} of {i * i} was good" for i in range(300)), 320)
    config = ModelConfig(vocab_size=320, n_positions=64, n_embd=32, n_layer=1, n_head=2, initializer_range=0.3)
    weights.save(GPT2(config, seed=3), folder / "files")
    tokenizer.save(folder / "files")
    (folder / "files" / "task.json").write_text('{"task": "base"}')
    return load(folder / "files")


def shown(model, prompt="the film", terminal=False, **params):
    file, told = Terminal(), io.StringIO()
    params = {**DEFAULTS, "max_tokens": 20, **params}
    show(model, prompt, params, Console(file=file, force_terminal=terminal), Console(file=told))
    return file, told.getvalue()


def test_a_terminal_sees_it_as_it_comes(model):
    at_once, _ = shown(model)
    streamed, _ = shown(model, terminal=True)
    assert streamed.getvalue() == at_once.getvalue() and streamed.getvalue().startswith("the film")
    assert len(streamed.parts) > 5 and streamed.parts[0] == "the film"


def test_samples_and_stop(model):
    several, _ = shown(model, terminal=True, samples=3)
    assert several.getvalue().count("the film") >= 3
    whole = shown(model)[0].getvalue()
    stop = whole[12:14]
    cut, _ = shown(model, stop=stop)
    assert cut.getvalue() == whole[: whole.index(stop, 8)] + "\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_truncation_is_told(model, terminal):
    with pytest.raises(ValueError, match=r"more than the model.s 64 positions"):
        shown(model, "the film " * 30, terminal)
    _, told = shown(model, "the film " * 30, terminal, truncate=True)
    assert told.startswith("note: prompt 0: only the last 44 tokens are read")
    assert shown(model, terminal=terminal)[1] == ""
