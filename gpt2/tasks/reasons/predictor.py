"""Item and history to a sentence, or why it is withheld; the language model that writes the sentences."""

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
from gpt2.model.hardware import at_once, device_of, ready, to_device
from gpt2.model.heads import pack
from gpt2.model.transformer import GPT2
from gpt2.tasks.reasons.checks import Written, place_of
from gpt2.tasks.reasons.config import PARAMS
from gpt2.tasks.reasons.dataset import PromptedSentences, PromptEncoder, joined
from gpt2.tasks.recommendation.catalogue import attributes, named_in

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gpt2.model.transformer import GPT2
    from gpt2.tasks.reasons.checks import Written
    from gpt2.tasks.reasons.dataset import PromptedSentences, PromptEncoder


class ReasonsPredictor:
    """Writes a sentence that explains the recommendation of an item by a user's history."""

    params = PARAMS

    def __init__(self, directory: Path):
        import pandas as pd

        from gpt2 import weights
        from gpt2.store import model_files
        from gpt2.tasks.reasons.checks import KnownTexts

        self.facts = model_files.read_task(directory)
        self.liked = self.facts["liked"]
        self.module = ready(Reasoner(weights.load(directory)), fixed=True)
        self.tokenizer = Tokenizer.load(directory, self.module.model.config.vocab_size)
        with open(directory / "learned.jsonl", encoding="utf-8") as lines:
            self.known = KnownTexts([json.loads(line)["text"] for line in lines])
        items = pd.read_json(directory / "items.jsonl", lines=True, dtype={"item": str, "title": str, "text": str})
        self.use_catalogue(items)

    def use_catalogue(self, items: pd.DataFrame) -> None:
        """Write about these items (item, title, text) from now on; they may differ from those of the training."""
        from gpt2.tasks.reasons.checks import Checks
        from gpt2.tasks.reasons.dataset import PromptEncoder

        facts = self.facts
        self.titles, self.of = items["title"].tolist(), attributes(items["text"].tolist())
        self.index = {title: i for i, title in reversed(list(enumerate(self.titles)))}  # the first of equal titles
        self.index |= {item: i for i, item in enumerate(items["item"]) if item not in self.index}
        self.reader = PromptEncoder(self.tokenizer, facts["context"], self.titles, self.of)
        self.checks = Checks(
            self.titles, self.of, self.known, frozenset(facts["unwanted"]), frozenset(facts["common"]),
            place_of(facts["standing"]), facts["most_copied"], facts["most_perplexity"],
        )  # fmt: skip
        self.input_example = [{"history": self.titles[:2], "item": self.titles[2]}]

    def written(self, item: int, liked: Sequence[int], params: Mapping[str, Any]) -> list[tuple[Written, str]]:
        """Return sampled sentences on an item, best first, each with why it is withheld, "" if it is shown.

        Sentences that pass the checks come first. They are ordered by the number of attributes that they name of those
        that the item and the liked ones share, then by perplexity.
        """

        samples, temperature, seed = int(params["samples"]), float(params["temperature"]), int(params["seed"])
        sentences = write(self.module, self.reader, item, liked, samples, temperature, seed)
        common = {name for name in self.of[item] if any(name in self.of[i] for i in liked)}
        judged = [(each, self.checks.withheld(each, item, liked)) for each in sentences]
        return sorted(judged, key=lambda j: (j[1] != "", -len(named_in(j[0].text, common)), j[0].perplexity))

    def reason(self, item: int, history: Sequence[int], params: Mapping[str, Any]) -> tuple[str, str]:
        """Return (sentence, why there is none) on an item for a user with this history in order of time."""
        from gpt2.tasks.reasons.dataset import related

        if not history:
            return "", "nothing that was liked is known"
        best, why = self.written(item, related(history, item, self.of, self.liked), params)[0]
        return ("", why) if why else (self.checks.sentence(best.text, item), "")

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame:
        """Return a row per input: `reason`, "" if none may be shown, and `withheld`, why.

        An input is {"history": [...], "item": ...}: titles or ids of the catalogue, the history in order of time.
        `params`: `samples`, the number of sentences of which the best is taken; `temperature`; `seed`. Raises
        `ValueError` for an unknown item or a parameter out of range.
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
            names = [str(value) for value in (record["item"], *record["history"])]
            if unknown := [value for value in names if value not in self.index]:
                raise ValueError(f"input {number} has {unknown[0]!r}, which is not in the catalogue; leave it out")
            item, *history = (self.index[value] for value in names)
            rows.append(self.reason(item, history, params))
        return pd.DataFrame(rows, columns=["reason", "withheld"])


BATCH = 64


class Reasoner(nn.Module):
    """Next-token prediction of sentences after their prompts."""

    def __init__(self, model: GPT2):
        super().__init__()
        self.model = model

    def nll(self, ids: Tensor, lengths: Tensor, sentence_lengths: Tensor) -> Tensor:
        """Return (B,) negative log-likelihoods (nats) of a batch's sentences after their prompts."""
        tokens, packed = pack(ids, lengths)
        places = torch.arange(ids.shape[1], device=ids.device)
        first = (lengths - sentence_lengths)[:, None]
        goal = (places >= first) & (places < lengths[:, None])
        before = goal.roll(-1, dims=1)  # a token is predicted at the place before it; no sentence begins a row
        inside = places < lengths[:, None]
        hidden = self.model.hidden(tokens, packed=packed)[before[inside]]
        each = F.cross_entropy(self.model.logits(hidden).float(), ids[goal], reduction="none")
        row = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)[goal]
        return each.new_zeros(len(ids)).index_add(0, row, each)

    def forward(self, ids: Tensor, lengths: Tensor, sentence_lengths: Tensor) -> Tensor:
        """Return the mean over sentences of the mean loss (nats) of their tokens."""
        return (self.nll(ids, lengths, sentence_lengths) / sentence_lengths).mean()


def losses(module: Reasoner, data: PromptedSentences) -> tuple[list[float], list[int]]:
    """Return (negative log-likelihoods in nats, numbers of tokens) of the sentences."""
    nll: list[float] = []
    with torch.inference_mode():
        step = at_once(module, BATCH)
        for start in range(0, len(data), step):
            batch = to_device(data.batch(range(start, min(start + step, len(data))), 0), device_of(module))
            nll += module.nll(**batch).double().tolist()
    return nll, [len(s) for s in data.sentences]


def write(
    module: Reasoner,
    reader: PromptEncoder,
    item: int,
    liked: Sequence[int],
    samples: int,
    temperature: float,
    seed: int,
) -> list[Written]:
    """Return distinct sampled sentences on an item; they depend on the arguments alone."""
    prompt, end = reader.prompt(item, liked), reader.tokenizer.end_of_text
    drawn = generate(module.model, end, [prompt], reader.room, temperature, seed=seed, samples=samples, top_k=50)
    distinct: dict[tuple[int, ...], list[int]] = {tuple(ids): ids for ids in drawn}  # in order
    rows = [[*ids, *([end] if len(ids) < reader.room else [])] for ids in distinct.values()]
    with torch.inference_mode():
        nll = module.nll(**to_device(joined([prompt] * len(rows), rows), device_of(module))).double().cpu()
    perplexity = (nll / torch.tensor([len(row) for row in rows])).exp().tolist()
    return [
        Written(reader.tokenizer.decode(ids), len(ids) < reader.room, value)
        for ids, value in zip(distinct.values(), perplexity, strict=True)
    ]
