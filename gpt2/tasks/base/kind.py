"""The pretrained model as a kind: its card, the parameters of its `predict`, its predictor, its unit results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gpt2.data.tokenizer import Tokenizer
from gpt2.store.model_files import BASE_NAME
from gpt2.tasks.task import ModelKind

if TYPE_CHECKING:
    import pandas as pd

    from gpt2.evaluation.unit_results import Evidence

PROMPTS = ("This film", "The acting", "I would recommend", "In the beginning")
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


class Base(ModelKind):
    """The pretrained language model."""

    name = BASE_NAME
    title = "Language model"
    primary = "bits_per_byte"
    higher_is_better = False
    floor = "unigram"
    baselines = ("unigram",)
    params: ClassVar[Mapping[str, Any]] = DEFAULTS
    use = "The start of models for tasks, and continuing texts of the kind that it learned from. Not a source of facts."
    limits = (
        "It repeats what is in its training text, prejudices, errors and names included; nothing filters what it "
        "writes.",
        "A model of this size writes fluent passages without sense; it follows no instructions.",
        "It learned from one corpus: other languages, topics and forms of text are worse by an amount to measure "
        "first.",
    )
    example = PROMPTS[0]
    independent_rows = False  # row i of a batch draws from `seed + i`

    def limits_of(self, report: Mapping[str, Any]) -> tuple[str, ...]:
        from gpt2.tasks.base import exposure

        return (*self.limits, exposure.told(report["canaries"])) if "canaries" in report else self.limits

    def predictor(self, directory: Path) -> GeneratorPredictor:
        return GeneratorPredictor(directory)

    def evidence(self, predictions: pd.DataFrame) -> Evidence:
        from gpt2.evaluation import unit_results

        tokens, part = predictions["tokens"].to_numpy(), predictions["part"].to_numpy()
        baseline = predictions[f"nll of {self.floor}"].to_numpy()
        nll = {unit_results.MODEL: predictions["nll"].to_numpy(), self.floor: baseline}
        key = unit_results.key_of(part, tokens)
        unit = predictions["unit"].iloc[0]
        return unit_results.language_model(nll, tokens.astype(float), predictions["bytes"].to_numpy(), part, key, unit)


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
        none), `truncate`, and what `gpt2.generation.generate.Sampling` has. An empty prompt begins a new document. A
        prompt that
        leaves no room for `max_tokens` is refused with a `ValueError`, unless `truncate` lets its beginning go.
        """
        import pandas as pd

        from gpt2.generation.generate import write

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
        from gpt2.generation.generate import stream

        return stream(self.model, self.tokenizer, prompt, **self._asked(params))

    @staticmethod
    def _asked(params: Mapping[str, Any]) -> dict[str, Any]:
        from gpt2.generation.generate import Sampling

        p = {**DEFAULTS, **params}
        settings = Sampling(
            float(p["temperature"]), int(p["top_k"]), float(p["top_p"]), float(p["repetition_penalty"]), int(p["seed"])
        )
        stop = [p["stop"]] if p["stop"] else []
        return {
            "max_tokens": int(p["max_tokens"]), "settings": settings, "stop": stop, "truncate": bool(p["truncate"])
        }  # fmt: skip


BASE = Base()
