"""Reasons as a language model reads and writes them: a prompt of what was liked and what is recommended, a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.data.tokenizer import Tokenizer
from gpt2.generation.generate import generate
from gpt2.model.heads import pack
from gpt2.model.transformer import GPT2
from gpt2.tasks.reasons.checks import Written, place_of
from gpt2.tasks.reasons.config import PARAMS
from gpt2.tasks.reasons.dataset import Reader, Told, joined
from gpt2.tasks.recommendation.catalogue import attributes, named_in

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gpt2.model.transformer import GPT2
    from gpt2.tasks.reasons.checks import Written
    from gpt2.tasks.reasons.dataset import Reader, Told


class ReasonsPredictor:
    """What was liked and what is recommended to a sentence."""

    params = PARAMS

    def __init__(self, directory: Path):
        import pandas as pd

        from gpt2 import weights
        from gpt2.store import model_files
        from gpt2.tasks.reasons.checks import Known

        self.facts = model_files.read_task(directory)
        self.liked = self.facts["liked"]
        self.module = Reasoner(weights.load(directory))
        self.module.eval()
        self.tokenizer = Tokenizer.load(directory, self.module.model.config.vocab_size)
        with open(directory / "learned.jsonl", encoding="utf-8") as lines:
            self.known = Known([json.loads(line)["text"] for line in lines])
        items = pd.read_json(directory / "items.jsonl", lines=True, dtype={"item": str, "title": str, "text": str})
        self.tell_of(items)

    def tell_of(self, items: pd.DataFrame) -> None:
        """From now on write of these items (item, title, text), which need not be those of the training: what is told
        of them is all that the model goes by."""
        from gpt2.tasks.reasons.checks import Checks
        from gpt2.tasks.reasons.dataset import Reader

        facts = self.facts
        self.titles, self.of = items["title"].tolist(), attributes(items["text"].tolist())
        self.index = {title: i for i, title in reversed(list(enumerate(self.titles)))}  # the first of equal titles
        self.index |= {item: i for i, item in enumerate(items["item"]) if item not in self.index}
        self.reader = Reader(self.tokenizer, facts["context"], self.titles, self.of)
        self.checks = Checks(
            self.titles, self.of, self.known, frozenset(facts["unwanted"]), frozenset(facts["common"]),
            place_of(facts["standing"]), facts["most_copied"], facts["most_perplexity"],
        )  # fmt: skip
        self.input_example = [{"history": self.titles[:2], "item": self.titles[2]}]

    def written(self, item: int, liked: Sequence[int], params: Mapping[str, Any]) -> list[tuple[Written, str]]:
        """Sentences on an item, the best first, each with why it is withheld, "" where it is not.

        Those that pass the checks come first; of these the one that says more of what the item and what was liked have
        in common; then the likelier one.
        """

        samples, temperature, seed = int(params["samples"]), float(params["temperature"]), int(params["seed"])
        found = write(self.module, self.reader, item, liked, samples, temperature, seed)
        common = {name for name in self.of[item] if any(name in self.of[i] for i in liked)}
        judged = [(each, self.checks.withheld(each, item, liked)) for each in found]
        return sorted(judged, key=lambda j: (j[1] != "", -len(named_in(j[0].text, common)), j[0].perplexity))

    def reason(self, item: int, history: Sequence[int], params: Mapping[str, Any]) -> tuple[str, str]:
        """(sentence, why there is none) on an item for somebody who chose others, in order of time."""
        from gpt2.tasks.reasons.dataset import related

        if not history:
            return "", "nothing that was liked is known"
        best, why = self.written(item, related(history, item, self.of, self.liked), params)[0]
        return ("", why) if why else (self.checks.sentence(best.text, item), "")

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame:
        """A row per input: `reason`, "" where none may be shown, and `withheld`, why.

        An input is {"history": [...], "item": ...}: titles or ids of the catalogue, of the history in order of time.
        `params`: `samples`, sentences of which the best is taken; `temperature`; `seed`. `ValueError` names what is
        unknown or out of range.
        """
        import pandas as pd

        params = {**self.params, **params}
        if int(params["samples"]) < 1 or int(params["seed"]) < 0:
            raise ValueError(f"samples={params['samples']}, seed={params['seed']}; give 1 or more, and 0 or more")
        records = [inputs] if isinstance(inputs, Mapping) else list(inputs)
        rows = []
        for number, record in enumerate(records):
            if not isinstance(record, Mapping) or not {"history", "item"} <= set(record):
                raise ValueError(f'input {number} is {record!r:.200}; give {{"history": [titles], "item": title}}')
            asked = [str(value) for value in (record["item"], *record["history"])]
            if unknown := [value for value in asked if value not in self.index]:
                raise ValueError(f"input {number} has {unknown[0]!r}, which is not in the catalogue")
            item, *history = (self.index[value] for value in asked)
            rows.append(self.reason(item, history, params))
        return pd.DataFrame(rows, columns=["reason", "withheld"])


BATCH = 64


class Reasoner(nn.Module):
    """Next-token prediction of sentences after their prompts."""

    def __init__(self, model: GPT2):
        super().__init__()
        self.model = model

    def nll(self, ids: Tensor, lengths: Tensor, sentence_lengths: Tensor) -> Tensor:
        """(B,) negative log-likelihoods (nats) of a `Told` batch's sentences."""
        tokens, packed = pack(ids, lengths)
        places = torch.arange(ids.shape[1], device=ids.device)
        first = (lengths - sentence_lengths)[:, None]
        goal = (places >= first) & (places < lengths[:, None])
        before = goal.roll(-1, dims=1)  # what predicts a token stands before it; no sentence begins a row
        inside = places < lengths[:, None]
        hidden = self.model.hidden(tokens, packed=packed)[before[inside]]
        each = F.cross_entropy(self.model.logits(hidden).float(), ids[goal], reduction="none")
        row = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)[goal]
        return each.new_zeros(len(ids)).index_add(0, row, each)

    def forward(self, ids: Tensor, lengths: Tensor, sentence_lengths: Tensor) -> Tensor:
        """The mean over sentences of the mean over their tokens."""
        return (self.nll(ids, lengths, sentence_lengths) / sentence_lengths).mean()


def losses(module: Reasoner, data: Told) -> tuple[list[float], list[int]]:
    """(negative log-likelihood in nats, tokens) of each sentence."""
    found: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(data), BATCH):
            batch = data.batch(range(start, min(start + BATCH, len(data))), 0)
            found += module.nll(**batch).double().tolist()
    return found, [len(s) for s in data.sentences]


def write(
    module: Reasoner, reader: Reader, item: int, liked: Sequence[int], samples: int, temperature: float, seed: int
) -> list[Written]:
    """Sentences on an item; what they are depends on nothing else."""
    prompt, end = reader.prompt(item, liked), reader.tokenizer.end_of_text
    drawn = generate(module.model, end, [prompt], reader.room, temperature, seed=seed, samples=samples, top_k=50)
    found: dict[tuple[int, ...], list[int]] = {tuple(ids): ids for ids in drawn}  # each once, in order
    rows = [[*ids, *([end] if len(ids) < reader.room else [])] for ids in found.values()]
    with torch.inference_mode():
        nll = module.nll(**joined([prompt] * len(rows), rows)).double()
    perplexity = (nll / torch.tensor([len(row) for row in rows])).exp().tolist()
    return [
        Written(reader.tokenizer.decode(ids), len(ids) < reader.room, value)
        for ids, value in zip(found.values(), perplexity, strict=True)
    ]
