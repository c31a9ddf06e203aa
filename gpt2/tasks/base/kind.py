"""The pretrained model as a kind: its card, the parameters of its `predict`, its predictor, its per-unit results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gpt2.data.tokenizer import Tokenizer
from gpt2.store.model_files import BASE_NAME
from gpt2.tasks.task import ModelKind

if TYPE_CHECKING:
    import pandas as pd

    from gpt2.evaluation.unit_results import UnitResults
    from gpt2.generation.generate import Pieces

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
    use = "Fine-tuning for tasks, and continuing texts of the kind that it was trained on. It is not a source of facts."
    limits = (
        "It repeats its training text, including prejudices, errors and names; its output is not filtered.",
        "A model of this size writes fluent passages without sense; it follows no instructions.",
        "It was trained on one corpus. It is worse on other languages, topics and forms of text; measure it there "
        "first.",
    )
    example = PROMPTS[0]
    independent_rows = False  # row i of a batch draws from `seed + i`

    def limits_of(self, report: Mapping[str, Any]) -> tuple[str, ...]:
        from gpt2.tasks.base import exposure

        return (*self.limits, exposure.as_sentences(report["canaries"])) if "canaries" in report else self.limits

    def predictor(self, directory: Path) -> GeneratorPredictor:
        return GeneratorPredictor(directory)

    def unit_results(self, predictions: pd.DataFrame) -> UnitResults:
        from gpt2.evaluation import unit_results

        tokens, part = predictions["tokens"].to_numpy(), predictions["part"].to_numpy()
        baseline = predictions[f"nll of {self.floor}"].to_numpy()
        nll = {unit_results.MODEL: predictions["nll"].to_numpy(), self.floor: baseline}
        key = unit_results.key_of(part, tokens)
        unit = predictions["unit"].iloc[0]
        return unit_results.language_model(nll, tokens.astype(float), predictions["bytes"].to_numpy(), part, key, unit)


class GeneratorPredictor:
    """Continues prompts with texts."""

    def __init__(self, directory: Path):
        from gpt2 import weights
        from gpt2.model.hardware import ready

        self.model = ready(weights.load(directory))
        self.tokenizer = Tokenizer.load(directory, self.model.config.vocab_size)
        # In a short context, the example and the default number of tokens have a half of it each.
        half = self.model.config.n_positions // 2
        self.input_example = (self.tokenizer.decode(self.tokenizer.encode("This film is")[:half]),)
        self.params = DEFAULTS | {"max_tokens": min(DEFAULTS["max_tokens"], half)}

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame:
        """Return a row per continuation: the `prompt` and its continuation `text`.

        `params`: `max_tokens`, `samples` (continuations per prompt), `stop` (a text before which to end, "" for none),
        `truncate`, and the fields of `gpt2.generation.generate.Sampling`. An empty prompt begins a new document. Raises
        `ValueError` if a prompt leaves no room for `max_tokens`, unless `truncate` cuts its beginning.
        """
        import pandas as pd

        from gpt2.generation.generate import write

        prompts = [inputs] if isinstance(inputs, str) else list(inputs)
        for i, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise ValueError(f"prompt {i} is {prompt!r}; give a text")
        samples = int({**self.params, **params}["samples"])
        texts = write(self.model, self.tokenizer, prompts, samples=samples, **self._arguments(params))
        rows = [(prompt, text) for prompt, each in zip(prompts, texts, strict=True) for text in each]
        return pd.DataFrame(rows, columns=["prompt", "text"])

    def stream(self, prompt: str, params: Mapping[str, Any]) -> Iterator[str]:
        """Yield the continuation of a prompt in pieces, as it is generated."""
        from gpt2.generation.generate import stream

        return stream(self.model, self.tokenizer, prompt, **self._arguments(params))

    def pieces(
        self, prompts: Sequence[str], params: Mapping[str, Any], stop: Sequence[str], texts: list[Pieces]
    ) -> Iterator[tuple[int, str]]:
        """Yield (row, new text) of all continuations as they are written, each up to one of the texts `stop`.

        Each prompt has `samples` rows, one after the other; `texts`, an empty list, gets their state.
        """
        from gpt2.generation.generate import pieces

        given = {**self._arguments(params), "stop": stop, "samples": int({**self.params, **params}["samples"])}
        return pieces(self.model, self.tokenizer, prompts, texts=texts, **given)

    def _arguments(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `gpt2.generation.generate` for parameters of `predict`."""
        from gpt2.generation.generate import Sampling

        p = {**self.params, **params}
        settings = Sampling(
            float(p["temperature"]), int(p["top_k"]), float(p["top_p"]), float(p["repetition_penalty"]), int(p["seed"])
        )
        stop = [p["stop"]] if p["stop"] else []
        return {
            "max_tokens": int(p["max_tokens"]), "settings": settings, "stop": stop, "truncate": bool(p["truncate"])
        }  # fmt: skip


BASE = Base()
