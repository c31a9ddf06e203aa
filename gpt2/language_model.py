"""The pretrained model itself: how well it predicts held-out text, and the texts that it writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2 import metrics
from gpt2.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from gpt2.batches import TokenDataset
    from gpt2.model import GPT2

NAME, TITLE = "base", "Language model"
PRIMARY, FLOOR = "bits_per_byte", "unigram"
PROMPTS = ("This film", "The acting", "I would recommend", "In the beginning")
SAMPLE_TOKENS = 60
USE = "The start of models for tasks, and continuing texts of the kind that it learned from. Not a source of facts."
LIMITS = (
    "It repeats what is in its training text, prejudices, errors and names included; nothing filters what it writes.",
    "A model of this size writes fluent passages without sense; it follows no instructions.",
    "It learned from one corpus: other languages, topics and forms of text are worse by an amount to measure first.",
)
DEFAULTS: dict[str, Any] = {
    "max_tokens": 50,
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "seed": 0,
    "samples": 1,
    "stop": "",
    "truncate": False,
}


def evaluate(
    directory: Path, validation: Mapping[str, tuple[TokenDataset, float]], training: TokenDataset, out: Path
) -> dict[str, Any]:
    """The report of a pretrained model on the whole validation split, beside a unigram model of the training split.

    `validation` has the split's parts, {name: (samples, UTF-8 bytes per token)}; of several, each has its bits per
    byte as well.
    """
    import numpy as np

    from gpt2 import weights
    from gpt2.generate import generate

    model, tokenizer = weights.load(directory), Tokenizer.load(directory)
    model.eval()
    parts = {name: part for name, part in validation.items() if len(part[0])}
    nll, tokens, size, targets, each = 0.0, 0, 0.0, [], {}
    for name, (data, ratio) in parts.items():
        part, count = negative_log_likelihood(model, data)
        nll, tokens, size = nll + part, tokens + count, size + count * ratio
        targets.append(data.stream.read(1, count))
        if len(validation) > 1:
            each[f"{PRIMARY}_{name}"] = metrics.language_model(part, count, count * ratio)[PRIMARY]
    baseline = unigram_nll(training, np.concatenate(targets), model.config.vocab_size)
    prompts = [tokenizer.encode(p) for p in PROMPTS]
    room = min(SAMPLE_TOKENS, model.config.n_positions - max(map(len, prompts)))
    written = generate(model, tokenizer.end_of_text, prompts, room, temperature=0.8, top_k=50)
    samples = [f"{p}{tokenizer.decode(ids)}" for p, ids in zip(PROMPTS, written, strict=True)]
    return {
        "task": NAME,
        "title": TITLE,
        "primary": {"name": PRIMARY, "higher_is_better": False},
        "floor": FLOOR,
        "metrics": metrics.language_model(nll, tokens, size) | each,
        "baselines": {FLOOR: metrics.language_model(baseline, tokens, size)},
        "counts": {"parameters": model.config.n_parameters, "validation_tokens": tokens},
        "samples": {"Texts that the model writes": samples},
        "figures": [],
    }


def negative_log_likelihood(model: GPT2, samples: TokenDataset) -> tuple[float, int]:
    """The sum over all samples' tokens (nats), and their number."""
    nll, tokens = 0.0, 0
    for start in range(0, len(samples), 16):
        batch = samples.batch(range(start, min(start + 16, len(samples))), 0)
        part, count = model.loss_sum(batch["ids"], batch["targets"])
        nll, tokens = nll + part, tokens + count
    return nll, tokens


def unigram_nll(training: TokenDataset, targets: np.ndarray, vocab_size: int) -> float:
    """Negative log-likelihood (nats) of targets under the training split's token counts, one added to each."""
    import numpy as np

    counts = np.ones(vocab_size)
    for part in training.stream.parts:
        counts += np.bincount(part, minlength=vocab_size)
    return float(-np.log(counts / counts.sum())[targets].sum())


class GeneratorPredictor:
    """Prompts to texts."""

    input_example = ("This film is",)

    def __init__(self, directory: Path):
        from gpt2 import weights

        self.model = weights.load(directory)
        self.tokenizer = Tokenizer.load(directory, self.model.config.vocab_size)
        self.model.eval()

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame:
        """A row per continuation: `prompt`, and `text`, what follows.

        `params`: `max_tokens`, `samples` (continuations per prompt), `stop` (a text before which to end, "" for
        none), `truncate`, and what `gpt2.sampling.Sampling` has. An empty prompt begins a new document. A prompt that
        leaves no room for `max_tokens` is refused with a `ValueError`, unless `truncate` lets its beginning go.
        """
        import pandas as pd

        from gpt2.writing import write

        prompts = [inputs] if isinstance(inputs, str) else list(inputs)
        for i, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise ValueError(f"prompt {i} is {prompt!r}; give a text")
        samples = int({**DEFAULTS, **params}["samples"])
        texts = write(self.model, self.tokenizer, prompts, samples=samples, **self._asked(params))
        rows = [(prompt, text) for prompt, found in zip(prompts, texts, strict=True) for text in found]
        return pd.DataFrame(rows, columns=["prompt", "text"])

    def stream(self, prompt: str, params: Mapping[str, Any]) -> Iterator[str]:
        """The continuation in pieces, as it comes."""
        from gpt2.writing import stream

        return stream(self.model, self.tokenizer, prompt, **self._asked(params))

    @staticmethod
    def _asked(params: Mapping[str, Any]) -> dict[str, Any]:
        from gpt2.sampling import Sampling

        p = {**DEFAULTS, **params}
        settings = Sampling(
            float(p["temperature"]), int(p["top_k"]), float(p["top_p"]), float(p["repetition_penalty"]), int(p["seed"])
        )
        stop = [p["stop"]] if p["stop"] else []
        return {
            "max_tokens": int(p["max_tokens"]), "settings": settings, "stop": stop, "truncate": bool(p["truncate"])
        }  # fmt: skip
