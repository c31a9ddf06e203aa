"""The task `reasons`: a sentence that recommends an item, for a user with a history, shown if it passes the checks."""

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
    from gpt2.evaluation.unit_results import UnitResults
    from gpt2.model.transformer import GPT2
    from gpt2.tasks.reasons.dataset import PromptedSentences
    from gpt2.tasks.reasons.predictor import ReasonsPredictor


class Reasons(Task):
    """Written reasons for recommendations."""

    name = "reasons"
    title = "Reasons for recommendations"
    primary = "bits_per_byte"
    higher_is_better = False
    floor = UNIGRAM
    baselines = (UNIGRAM, SWAPPED)
    Settings = ReasonsSettings
    params = PARAMS
    use = "A sentence beside a recommendation that explains why the user may like it."
    limits = (
        "Sentences come from reviews of other items; of this item the model knows only its catalogue attributes.",
        "A sentence that fails a check is withheld; one that passes all checks may still be wrong about the item.",
        "Copying is checked against the fine-tuning sentences, not against the base model's training text.",
    )
    example: ClassVar[Any] = {"history": ["a title of the catalogue"], "item": "another"}

    def prepare(self, settings: Any, source: str | Path, out: Path) -> dict[str, Any]:
        """Write the examples to `out` and return counts.

        The files are train, validation and test.parquet (text, item, liked), items.parquet, asked.parquet (item, liked:
        the report's prompts) and settings.json. Raises `ValueError` if a split would be empty.
        """
        import pandas as pd

        from gpt2.tasks.reasons import dataset as reasons_dataset
        from gpt2.tasks.recommendation import catalogue
        from gpt2.tasks.recommendation.catalogue import attributes

        texts, counts = reasons_dataset.read(source, settings)
        items, chosen, of_catalogue = catalogue.usable(settings.catalogue, settings)
        of = attributes(items["text"].tolist())
        kinds = reasons_dataset.words_of(of)
        unwanted = sorted({*settings.unwanted, *(reasons_dataset.speaking_against(texts) - kinds)})
        common = sorted(reasons_dataset.common_words(texts, settings.common_share) | kinds)
        shares = (settings.test_share, settings.validation_share)
        sentences = reasons_dataset.collected(texts, settings.standing, set(common).difference(unwanted), shares)
        readers = reasons_dataset.Audience([h[:-1] for h in chosen["items"]], of, settings.liked)
        pairs = reasons_dataset.pair_with_items(sentences, readers, {True: settings.draws, False: 1})
        counts |= {"sentences": len(sentences), "users": of_catalogue["users"], "items": len(items)}
        for name in SPLITS:
            part = pairs[pairs["split"] == name].drop(columns="split").reset_index(drop=True)
            counts[name] = len(part)
            if part.empty:
                raise ValueError(
                    f"{source}: of {len(sentences)} sentences that begin with a placeholder for an item, none is left "
                    f"for the {name} split; set standing to how they begin, add texts, or change {name}_share"
                )
            part.to_parquet(out / f"{name}.parquet", index=False)
        items.to_parquet(out / "items.parquet", index=False)
        prompts = [(int(h[-1]), reasons_dataset.related(h[:-1], h[-1], of, settings.liked)) for h in chosen["items"]]
        pd.DataFrame(prompts, columns=["item", "liked"]).to_parquet(out / "asked.parquet", index=False)
        own = {name: getattr(settings, name) for name in ("standing", "most_copied", "most_perplexity", "liked")}
        (out / "settings.json").write_text(json.dumps({"unwanted": unwanted, "common": common, **own}))
        return counts

    def dataset(self, examples: Path, split: str, tokenizer: Tokenizer, context: int) -> PromptedSentences:
        import pandas as pd

        from gpt2.tasks.reasons.dataset import reader_of, sentence_dataset

        return sentence_dataset(pd.read_parquet(examples / f"{split}.parquet"), reader_of(examples, tokenizer, context))

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

    def unit_results(self, predictions: pd.DataFrame) -> UnitResults:
        from gpt2.tasks.reasons import report

        return report.unit_results_of(self, predictions)


TASK = Reasons()
