"""Reasons for recommendations: a sentence on an item, written for somebody who liked others, shown where it may be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from gpt2.catalogue import CatalogueFiles
from gpt2.config import OptimizerConfig, TrainConfig, operational
from gpt2.reasons import attributes, named_in, place_of
from gpt2.splits import SPLITS
from gpt2.task import Task, TaskSettings

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gpt2.evidence import Evidence
    from gpt2.model import GPT2
    from gpt2.reasoner import Reader, Told
    from gpt2.reasons import Written
    from gpt2.tokenizer import Tokenizer

UNIGRAM, SWAPPED = "unigram", "another item's prompt"
ASKED = 100
"""Users for whom the report has reasons written."""


class ReasonsSettings(CatalogueFiles, TaskSettings):
    """Reasons for recommendations, learned from texts on items. Off unless `enabled` is set."""

    enabled: bool = False
    """Whether the pipeline runs this task."""
    source: str = Field("sample:reviews", min_length=1)
    """The texts on items, .csv, .jsonl or .parquet, or `sample:reviews`; which item a text is on need not be known."""
    texts_field: str = Field("text", min_length=1)
    """The column of the texts."""
    label_field: str | None = Field("label", min_length=1)
    """The column that says whether a text speaks for its item; without one all do, and no word speaks against one."""
    good_label: str = "1"
    """What that column has where the text does."""
    unwanted: list[str] = Field(["i", "me", "my", "mine", "we", "us", "our", "not", "no", "nor", "never", "t"])
    """Words in small letters that no reason has, of the one who speaks and of what is not (`t` is that of `isn't`); and
    none has words that texts which don't speak for an item have twice as often as others."""
    common_share: float = Field(0.005, ge=0, le=1)
    """A reason has only words that such a share of the texts has that speak for an item, and those of attributes."""
    standing: list[str] = Field(
        ["this film", "this movie", "the film", "the movie", "this|is", "this|was", "this|has", "it|is a", "it|is an",
         "it|is one"],
        min_length=1,
    )  # fmt: skip
    """What sentences begin with that are on an item, to be replaced by its title; `this|is`: `this` before `is`."""
    catalogue: str = Field("sample:movielens", min_length=1)
    """The items, as `tasks.recommendation.source`."""
    liked: int = Field(2, ge=1, le=5)
    """Earlier choices that are told with an item."""
    draws: int = Field(8, ge=1, le=100)
    """How many items a sentence is told of in training that says what an item is, as `comedy`; others of one."""
    test_share: float = Field(0.01, gt=0, le=0.4)
    """Share of the texts that the report is made from; up to `corpus.validation_share` pretraining has not read them
    either."""
    validation_share: float = Field(0.04, gt=0, le=0.4)
    """Share of the texts that training is watched on."""
    most_copied: int = Field(8, ge=1, le=1000)
    """A sentence with a longer run of words that is in one to learn from is not shown (unit: words)."""
    most_perplexity: float = Field(5.0, gt=1)
    """A sentence that is less likely, by its tokens after its prompt, is not shown: those above made no sense."""
    num_workers: int | None = operational(1, ge=1, le=4096)
    """Workers of this task's training."""
    train: TrainConfig = TrainConfig(
        epochs=2,
        batch_size=32,
        micro_batch_size=16,
        context=128,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, schedule="cosine", final_ratio=0.0),
        eval_every=100,
        eval_samples=128,
        checkpoint_every=100,
        log_every=10,
    )
    """Fine-tuning: length, batches, rates. Half of the context is the prompt's, half the sentence's."""

    @model_validator(mode="after")
    def _room(self):
        if self.train.context < 48:
            raise ValueError(f"context={self.train.context} leaves no room for prompt and sentence; set 48 or more")
        if self.test_share + self.validation_share > 0.5:
            raise ValueError(
                f"test_share={self.test_share} and validation_share={self.validation_share} leave less than half "
                f"to train on; lower them"
            )
        return self

    def sources(self) -> dict[str, str]:
        found = super().sources() | {"catalogue": self.catalogue}
        return found | ({} if self.interactions is None else {"interactions": self.interactions})


PARAMS: Mapping[str, Any] = {"samples": 8, "temperature": 0.7, "seed": 0}
"""Optional parameters of `predict` and their defaults."""


class Reasons(Task):
    """Sentences on items."""

    name = "reasons"
    title = "Reasons for recommendations"
    primary = "bits_per_byte"
    higher_is_better = False
    floor = UNIGRAM
    baselines = (UNIGRAM, SWAPPED)
    Settings = ReasonsSettings
    code: ClassVar[tuple[str, ...]] = (
        "gpt2.sentences", "gpt2.reasons", "gpt2.reasoner", "gpt2.replies", "gpt2.copying", "gpt2.search", "gpt2.corpus",
        "gpt2.splits", "gpt2.catalogue", "gpt2.catalogue_files", "gpt2.tables",
    )  # fmt: skip
    report_code: ClassVar[tuple[str, ...]] = (
        "gpt2.reasons_report", "gpt2.generate", "gpt2.sampling", "gpt2.decode", "gpt2.lengths",
    )  # fmt: skip
    params = PARAMS
    use = "A sentence beside a recommendation that says why one may like it."
    limits = (
        "It says of an item what people wrote of others: of what it is it knows the attributes in the catalogue alone.",
        "What fails a check is withheld; what passes all of them may still be wrong of this item.",
        "Copying is looked for in the sentences that it was tuned on, not in all that the base model has read.",
    )
    example: ClassVar[Any] = {"history": ["a title of the catalogue"], "item": "another"}

    def prepare(self, settings: Any, source: Path, out: Path) -> dict[str, Any]:
        """Write train, validation and test.parquet (text, item, liked), items.parquet, asked.parquet (item, liked: what
        the report asks for) and settings.json. `ValueError` where there is too little to learn from."""
        import pandas as pd

        from gpt2 import catalogue, sentences

        texts, counts = sentences.read(source, settings.texts_field, settings.label_field, settings.good_label)
        items, chosen, of_catalogue = catalogue.usable(Path(settings.catalogue), settings)
        of = attributes(items["text"].tolist())
        kinds = sentences.words_of(of)
        unwanted = sorted({*settings.unwanted, *(sentences.speaking_against(texts) - kinds)})
        common = sorted(sentences.common_words(texts, settings.common_share) | kinds)
        shares = (settings.test_share, settings.validation_share)
        found = sentences.collected(texts, settings.standing, set(common).difference(unwanted), shares)
        readers = sentences.Readers([h[:-1] for h in chosen["items"]], of, settings.liked)
        told = sentences.told(found, readers, {True: settings.draws, False: 1})
        counts |= {"sentences": len(found), "users": of_catalogue["users"], "items": len(items)}
        for name in SPLITS:
            part = told[told["split"] == name].drop(columns="split").reset_index(drop=True)
            counts[name] = len(part)
            if part.empty:
                raise ValueError(
                    f"{source}: of {len(found)} sentences that begin with what stands for an item, none is left for "
                    f"the {name} split; set standing to how they begin, add texts, or change {name}_share"
                )
            part.to_parquet(out / f"{name}.parquet", index=False)
        items.to_parquet(out / "items.parquet", index=False)
        asked = [(int(h[-1]), sentences.related(h[:-1], h[-1], of, settings.liked)) for h in chosen["items"]]
        pd.DataFrame(asked, columns=["item", "liked"]).to_parquet(out / "asked.parquet", index=False)
        own = {name: getattr(settings, name) for name in ("standing", "most_copied", "most_perplexity", "liked")}
        (out / "settings.json").write_text(json.dumps({"unwanted": unwanted, "common": common, **own}))
        return counts

    def dataset(self, examples: Path, split: str, tokenizer: Tokenizer, context: int) -> Told:
        import pandas as pd

        return told_of(pd.read_parquet(examples / f"{split}.parquet"), reader_of(examples, tokenizer, context))

    def module(self, model: GPT2, examples: Path, tokenizer: Tokenizer) -> nn.Module:
        from gpt2.reasoner import Reasoner

        return Reasoner(model)

    def save(self, module: Any, examples: Path, tokenizer: Tokenizer, context: int, out: Path) -> None:
        import pandas as pd

        from gpt2 import weights

        weights.save(module.model, out, tokenizer=tokenizer)
        pd.read_parquet(examples / "items.parquet").to_json(
            out / "items.jsonl", orient="records", lines=True, force_ascii=False
        )
        learned = pd.read_parquet(examples / "train.parquet")[["text"]].drop_duplicates()
        learned.to_json(out / "learned.jsonl", orient="records", lines=True, force_ascii=False)
        own = json.loads((examples / "settings.json").read_text())
        weights.write_task(out, self.name, context=context, **own)

    def predictor(self, directory: Path) -> ReasonsPredictor:
        return ReasonsPredictor(directory)

    def evaluate(self, directory: Path, examples: Path, out: Path) -> dict[str, Any]:
        import numpy as np
        import pandas as pd

        from gpt2 import cost, lengths
        from gpt2.reasoner import losses
        from gpt2.reasons import Written
        from gpt2.reasons_report import looked_at

        predictor = self.predictor(directory)
        predictor.tell_of(pd.read_parquet(examples / "items.parquet"))  # a champion may have learned of others
        table, learned = (pd.read_parquet(examples / f"{split}.parquet") for split in ("test", "train"))
        data, read = (told_of(each, predictor.reader) for each in (table, learned))
        cut = {f"training {name}": counts for name, counts in read.cut.items()}
        cut |= {f"held-out {name}": counts for name, counts in data.cut.items()}
        swapped = table.assign(item=np.roll(table["item"], 1), liked=np.roll(table["liked"], 1))
        counts = np.ones(predictor.module.model.config.vocab_size)
        for ids in read.sentences:
            np.add.at(counts, ids, 1)
        unigram = -np.log(counts / counts.sum())
        table["nll"], table["tokens"] = losses(predictor.module, data)
        table[f"nll of {UNIGRAM}"] = [float(unigram[ids].sum()) for ids in data.sentences]
        table[f"nll of {SWAPPED}"] = losses(predictor.module, told_of(swapped, predictor.reader))[0]
        table["bytes"] = [len(text.encode()) for text in table["text"]]
        table.to_parquet(out / "predictions.parquet", index=False)
        evidence = self.evidence(table)
        values = {s: {m: evidence.value(m, s) for m in evidence.metrics} for s in evidence.systems}
        asked = pd.read_parquet(examples / "asked.parquet")
        asked = asked.iloc[np.unique(np.linspace(0, len(asked) - 1, min(ASKED, len(asked))).astype(int))]
        pairs = [(int(i), [int(j) for j in liked]) for i, liked in zip(asked["item"], asked["liked"], strict=True)]
        written = [predictor.written(item, liked, self.params) for item, liked in pairs]
        told = [(item, *each, why) for (item, _), group in zip(pairs, written, strict=True) for each, why in group]
        pd.DataFrame(told, columns=["item", *Written._fields, "withheld"]).to_parquet(
            out / "written.parquet", index=False
        )
        summary = evidence.summary()
        texts = table["text"].tolist()
        looked = looked_at(predictor, pairs, written, texts, values["model"], summary["intervals"])
        looked["remarks"].append(lengths.sentence(cut))
        return {
            "task": self.name,
            "title": self.title,
            "primary": {"name": self.primary, "higher_is_better": self.higher_is_better},
            "floor": self.floor,
            "baselines": {name: values[name] for name in self.baselines},
            "cut": cut,
            "counts": {"sentences": len(table), "tokens": int(table["tokens"].sum()), "users": len(pairs)},
            "figures": [],
            "cost": cost.of_prediction(predictor, predictor.module, predictor.input_example, tries=3),
            **summary,
            **looked,
        }

    def evidence(self, predictions: pd.DataFrame) -> Evidence:
        import numpy as np

        from gpt2 import evidence

        nll = {name: predictions[f"nll of {name}"].to_numpy() for name in self.baselines}
        tokens, size = (predictions[name].to_numpy().astype(float) for name in ("tokens", "bytes"))
        part, key = np.full(len(tokens), "sentences"), evidence.key_of(predictions["text"], predictions["item"])
        nll = {evidence.MODEL: predictions["nll"].to_numpy(), **nll}
        return evidence.language_model(nll, tokens, size, part, key, "sentence")


class ReasonsPredictor:
    """What was liked and what is recommended to a sentence."""

    params = PARAMS

    def __init__(self, directory: Path):
        import pandas as pd

        from gpt2 import weights
        from gpt2.copying import Known
        from gpt2.reasoner import Reasoner
        from gpt2.tokenizer import Tokenizer

        self.facts = weights.read_task(directory)
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
        from gpt2.reasoner import Reader
        from gpt2.reasons import Checks

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
        from gpt2.reasoner import write

        samples, temperature, seed = int(params["samples"]), float(params["temperature"]), int(params["seed"])
        found = write(self.module, self.reader, item, liked, samples, temperature, seed)
        common = {name for name in self.of[item] if any(name in self.of[i] for i in liked)}
        judged = [(each, self.checks.withheld(each, item, liked)) for each in found]
        return sorted(judged, key=lambda j: (j[1] != "", -len(named_in(j[0].text, common)), j[0].perplexity))

    def reason(self, item: int, history: Sequence[int], params: Mapping[str, Any]) -> tuple[str, str]:
        """(sentence, why there is none) on an item for somebody who chose others, in order of time."""
        from gpt2.sentences import related

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


def reader_of(examples: Path, tokenizer: Tokenizer, context: int) -> Reader:
    import pandas as pd

    from gpt2.reasoner import Reader

    items = pd.read_parquet(examples / "items.parquet")
    return Reader(tokenizer, context, items["title"].tolist(), attributes(items["text"].tolist()))


def told_of(table: pd.DataFrame, reader: Reader) -> Told:
    from gpt2.reasoner import Told

    return Told(reader, table["text"].tolist(), table["item"].tolist(), [list(each) for each in table["liked"]])


TASK = Reasons()
