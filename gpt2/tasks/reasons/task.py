"""Reasons for recommendations: a sentence on an item, written for somebody who liked others, shown where it may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gpt2.data.splits import SPLITS
from gpt2.tasks.reasons.config import PARAMS, SWAPPED, UNIGRAM, ReasonsSettings
from gpt2.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.evaluation.unit_results import Evidence
    from gpt2.model.transformer import GPT2
    from gpt2.tasks.reasons.dataset import Told
    from gpt2.tasks.reasons.predictor import ReasonsPredictor


class Reasons(Task):
    """Sentences on items."""

    name = "reasons"
    title = "Reasons for recommendations"
    primary = "bits_per_byte"
    higher_is_better = False
    floor = UNIGRAM
    baselines = (UNIGRAM, SWAPPED)
    Settings = ReasonsSettings
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

        from gpt2.tasks.reasons import dataset as reasons_dataset
        from gpt2.tasks.recommendation import catalogue
        from gpt2.tasks.recommendation.catalogue import attributes

        texts, counts = reasons_dataset.read(source, settings.texts_field, settings.label_field, settings.good_label)
        items, chosen, of_catalogue = catalogue.usable(Path(settings.catalogue), settings)
        of = attributes(items["text"].tolist())
        kinds = reasons_dataset.words_of(of)
        unwanted = sorted({*settings.unwanted, *(reasons_dataset.speaking_against(texts) - kinds)})
        common = sorted(reasons_dataset.common_words(texts, settings.common_share) | kinds)
        shares = (settings.test_share, settings.validation_share)
        found = reasons_dataset.collected(texts, settings.standing, set(common).difference(unwanted), shares)
        readers = reasons_dataset.Readers([h[:-1] for h in chosen["items"]], of, settings.liked)
        told = reasons_dataset.told(found, readers, {True: settings.draws, False: 1})
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
        asked = [(int(h[-1]), reasons_dataset.related(h[:-1], h[-1], of, settings.liked)) for h in chosen["items"]]
        pd.DataFrame(asked, columns=["item", "liked"]).to_parquet(out / "asked.parquet", index=False)
        own = {name: getattr(settings, name) for name in ("standing", "most_copied", "most_perplexity", "liked")}
        (out / "settings.json").write_text(json.dumps({"unwanted": unwanted, "common": common, **own}))
        return counts

    def dataset(self, examples: Path, split: str, tokenizer: Tokenizer, context: int) -> Told:
        import pandas as pd

        from gpt2.tasks.reasons.dataset import reader_of, told_of

        return told_of(pd.read_parquet(examples / f"{split}.parquet"), reader_of(examples, tokenizer, context))

    def module(self, model: GPT2, examples: Path, tokenizer: Tokenizer) -> nn.Module:
        from gpt2.tasks.reasons.predictor import Reasoner

        return Reasoner(model)

    def save(self, module: Any, examples: Path, tokenizer: Tokenizer, context: int, out: Path) -> None:
        import pandas as pd

        from gpt2 import weights
        from gpt2.store import model_files

        weights.save(module.model, out, tokenizer=tokenizer)
        pd.read_parquet(examples / "items.parquet").to_json(
            out / "items.jsonl", orient="records", lines=True, force_ascii=False
        )
        learned = pd.read_parquet(examples / "train.parquet")[["text"]].drop_duplicates()
        learned.to_json(out / "learned.jsonl", orient="records", lines=True, force_ascii=False)
        own = json.loads((examples / "settings.json").read_text())
        model_files.write_task(out, self.name, context=context, **own)

    def predictor(self, directory: Path) -> ReasonsPredictor:
        from gpt2.tasks.reasons.predictor import ReasonsPredictor

        return ReasonsPredictor(directory)

    def evaluate(self, directory: Path, examples: Path, out: Path) -> dict[str, Any]:
        from gpt2.tasks.reasons import report

        return report.evaluate(self, self.predictor(directory), examples, out)

    def evidence(self, predictions: pd.DataFrame) -> Evidence:
        from gpt2.tasks.reasons import report

        return report.evidence(self, predictions)


TASK = Reasons()
