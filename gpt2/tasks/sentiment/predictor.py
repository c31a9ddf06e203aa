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
    """Texts to labels and probabilities. A text longer than the model's positions is cut at its end."""

    input_example = ("The crew was lovely and we landed early", "My bag is lost again")

    def __init__(self, directory: Path):
        from gpt2.data.tokenizer import Tokenizer
        from gpt2.store.model_files import read_task
        from gpt2.training.hardware import quickest

        facts = read_task(directory)
        self.labels: list[str] = facts["labels"]
        self.temperature = float(facts.get("temperature", 1.0))
        self.masked: bool = facts.get("masked", False)
        """Whether the model learned from `masked` texts; older ones did not."""
        self.module = load_classifier(directory)
        self.tokenizer = Tokenizer.load(directory, self.module.model.config.vocab_size)
        self.ngrams = Ngrams.load(directory, len(self.labels))
        self.module.to(quickest()).eval()
        self.context: int = facts.get("context", self.module.model.config.n_positions)
        """Tokens of a text that training read at most; older models do not tell, and count as if it had read all."""

    def logits(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """(N, classes), before the temperature. Texts are sorted by length, so that little padding is computed."""
        import numpy as np
        import torch

        from gpt2.model.heads import pad

        short = self.read(texts)
        rows = encode(self.tokenizer, short, self.module.model.config.n_positions)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = np.zeros((len(rows), len(self.labels)))
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                out[chosen] = self.module.logits(*pad([rows[i] for i in chosen])).float().numpy()
        return out if self.ngrams is None or not len(texts) else out + self.ngrams.logits(short)

    def read(self, texts: Sequence[str]) -> Sequence[str]:
        """Texts as the model reads them."""
        return [masked(text) for text in texts] if self.masked else texts

    def cut(self, texts: Sequence[str], context: int | None = None) -> dict[str, int]:
        """How many texts are longer than the model's positions, or another context
        (`gpt2.evaluation.unit_results.counted`)."""
        return unit_results.counted(self.tokenizer, self.read(texts), context or self.module.model.config.n_positions)

    def probabilities(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """(N, classes), calibrated."""
        from gpt2.evaluation.confidence import softmax

        return softmax(self.logits(texts, batch_size), self.temperature)

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame:
        """A row per text: `label`, and `probability_LABEL` for each. `ValueError` for what is no text.

        `params`: `abstain_below`, the confidence below which the label is "": the model does not know.
        """
        import pandas as pd

        texts = checked_texts(inputs)
        least = float(params.get("abstain_below", 0.0))
        if not 0 <= least <= 1:
            raise ValueError(f"abstain_below={least:g} is no probability; give 0 to 1")
        probabilities = self.probabilities(texts)
        columns = {f"probability_{label}": probabilities[:, i] for i, label in enumerate(self.labels)}
        sure = probabilities.max(1) >= least
        told = [self.labels[i] if known else "" for i, known in zip(probabilities.argmax(1), sure, strict=True)]
        return pd.DataFrame({"label": told, **columns})


def load_classifier(directory: Path) -> Classifier:
    """The classifier in a directory that `Sentiment.save` wrote; its head has the shape that the weights have."""
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
