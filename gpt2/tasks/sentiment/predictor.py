"""Texts to labels and probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.evaluation import unit_results
from gpt2.tasks.sentiment.dataset import encode, labels_of, masked
from gpt2.tasks.sentiment.ngrams import FILE, Ngrams
from gpt2.tasks.task import checked_texts

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from gpt2.model.heads import Classifier


class SentimentPredictor:
    """Predicts labels and probabilities of texts. A text longer than the model's positions is cut at its end."""

    input_example = ("The crew was lovely and we landed early", "My bag is lost again")

    def __init__(self, directory: Path):
        from gpt2.data.tokenizer import Tokenizer
        from gpt2.model.hardware import ready
        from gpt2.store.model_files import read_task

        facts = read_task(directory)
        self.labels: list[str] = facts["labels"]
        self.temperature = float(facts.get("temperature", 1.0))
        self.masked: bool = facts.get("masked", False)
        """True if the model was trained on `masked` texts; older ones were not."""
        self.module = ready(load_classifier(directory), low=True)
        self.tokenizer = Tokenizer.load(directory, self.module.model.config.vocab_size)
        self.ngrams = Ngrams.load(directory, len(self.labels))
        self.context: int = facts.get("context", self.module.model.config.n_positions)
        """Longest text in training (tokens); older models do not record it and count as if nothing was cut."""

    def logits(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Return (N, classes) logits before the temperature. Texts are batched by length to save padding."""
        import numpy as np
        import torch

        from gpt2.model.hardware import at_once, device_of
        from gpt2.model.heads import pad

        short = self.read(texts)
        rows = encode(self.tokenizer, short, self.module.model.config.n_positions)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out, device = np.zeros((len(rows), len(self.labels))), device_of(self.module)
        batch_size = at_once(self.module, batch_size)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                out[chosen] = self.module.logits(*pad([rows[i] for i in chosen], device=device)).float().cpu().numpy()
        return out if self.ngrams is None or not len(texts) else out + self.ngrams.logits(short)

    def read(self, texts: Sequence[str]) -> Sequence[str]:
        """Return the texts as the model reads them."""
        return [masked(text) for text in texts] if self.masked else texts

    def cut(self, texts: Sequence[str], context: int | None = None) -> dict[str, int]:
        """Return the number of texts longer than the model's positions, or than another context.

        See `gpt2.evaluation.unit_results.counted`.
        """
        return unit_results.counted(self.tokenizer, self.read(texts), context or self.module.model.config.n_positions)

    def probabilities(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Return (N, classes) calibrated probabilities."""
        from gpt2.evaluation.confidence import softmax

        return softmax(self.logits(texts, batch_size), self.temperature)

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame:
        """Return a row per text: `label`, and `probability_LABEL` for each label.

        `params`: `abstain_below`, the confidence below which the label is "". Raises `ValueError` for an input that is
        not a text.
        """
        import pandas as pd

        texts = checked_texts(inputs)
        least = float(params.get("abstain_below", 0.0))
        if not 0 <= least <= 1:
            raise ValueError(f"abstain_below={least:g} is not a probability; give 0 to 1")
        probabilities = self.probabilities(texts)
        columns = {f"probability_{label}": probabilities[:, i] for i, label in enumerate(self.labels)}
        sure = probabilities.max(1) >= least
        labels = [self.labels[i] if known else "" for i, known in zip(probabilities.argmax(1), sure, strict=True)]
        return pd.DataFrame({"label": labels, **columns})


def load_classifier(directory: Path) -> Classifier:
    """Return the classifier that `Sentiment.save` wrote to a directory; the head's shape follows the weights."""
    from gpt2 import weights
    from gpt2.model.heads import Classifier
    from gpt2.weights import tensors

    path, model = directory / "head.safetensors", weights.load(directory)
    head = tensors.read(path).get("weight")
    older = head is not None and head.shape[-1:] == (2 * model.config.n_embd,)
    linear = (directory / FILE).exists()
    module = Classifier(model, len(labels_of(directory)), features=2 if older else 3, ngrams=linear)
    tensors.fill(module.head, path)
    return module
