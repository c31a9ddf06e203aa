"""The task `recommendation`: rank the next item of a user by the items' texts and the user's history."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gpt2.tasks.recommendation.config import RecommendationSettings
from gpt2.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.evaluation.unit_results import UnitResults
    from gpt2.model.transformer import GPT2
    from gpt2.tasks.recommendation.dataset import HistoryDataset
    from gpt2.tasks.recommendation.predictor import RecommendationPredictor


class Recommendation(Task):
    """Ranking of a catalogue's items for users."""

    name = "recommendation"
    title = "Next item by text"
    primary = "ndcg_at_10"
    floor = "popularity"
    baselines = ("popularity", "item-kNN", "recent item-kNN", "EASE", "text alone")
    Settings = RecommendationSettings
    params: ClassVar[Mapping[str, Any]] = {"top_k": 10}
    use = "Ranking the items of its catalogue, or candidates among them, by what a user has chosen before."
    limits = (
        "It knows the items of its catalogue only; a new one needs a new training.",
        "It favours items that were popular in its training data; items that few chose are rarely recommended.",
        "It was measured on the last choice of each known user; the effect of its recommendations was not measured.",
    )
    example: ClassVar[Any] = {"history": ["a title of the catalogue"]}

    def prepare(self, settings: RecommendationSettings, source: str | Path, out: Path) -> dict[str, Any]:
        """Write items.parquet, histories.parquet and catalogue.json; return the counts.

        See `gpt2.tasks.recommendation.catalogue.prepare`.
        """
        from gpt2.tasks.recommendation import catalogue

        return catalogue.prepare(source, settings, out)

    def dataset(self, examples: Path, split: str, tokenizer: Tokenizer, context: int) -> HistoryDataset:
        from gpt2.tasks.recommendation.dataset import HistoryDataset, load_examples

        histories, _ = load_examples(examples)
        if split == "validation":
            return HistoryDataset([h[:-1] for h in histories], context, last_only=True)
        return HistoryDataset([h[:-2] for h in histories], context)

    def samples(self, examples: Path, info: Mapping[str, Any], context: int) -> int:
        from gpt2.tasks.recommendation.dataset import HistoryDataset, load_examples

        return len(HistoryDataset([h[:-2] for h in load_examples(examples)[0]], context))

    def module(self, model: GPT2, examples: Path, tokenizer: Tokenizer) -> nn.Module:
        from gpt2.tasks.recommendation.dataset import Recommender, facts_of, load_examples, log_popularity, texts

        _, items = load_examples(examples)
        return Recommender(model, texts(items, tokenizer, facts_of(examples)["item_tokens"]), log_popularity(items))

    def save(self, module: Any, examples: Path, tokenizer: Tokenizer, context: int, out: Path) -> None:
        from safetensors.torch import save_file

        from gpt2 import weights
        from gpt2.store import model_files
        from gpt2.tasks.recommendation import hybrid
        from gpt2.tasks.recommendation.dataset import facts_of, load_examples

        weights.save(module.model, out, tokenizer=tokenizer)
        histories, items = load_examples(examples)
        head = {n: p.detach().float().contiguous() for n, p in module.named_parameters() if not n.startswith("model.")}
        save_file(head, out / "head.safetensors")
        items.to_json(out / "items.jsonl", orient="records", lines=True, force_ascii=False)
        facts = {"context": context, **facts_of(examples)}
        model_files.write_task(out, self.name, **facts)
        mixed = hybrid.fit(self.predictor(out).by_text, [h[:-1] for h in histories], items)
        mixed.save(out)
        model_files.write_task(out, self.name, **facts | {"weights": dict(mixed.weights)})

    def predictor(self, directory: Path) -> RecommendationPredictor:
        from gpt2.tasks.recommendation.predictor import RecommendationPredictor

        return RecommendationPredictor(directory)

    def evaluate(self, directory: Path, examples: Path, out: Path) -> dict[str, Any]:
        from gpt2.tasks.recommendation import report

        return report.evaluate(self, self.predictor(directory), examples, out)

    def unit_results(self, predictions: pd.DataFrame) -> UnitResults:
        from gpt2.tasks.recommendation import report

        return report.unit_results_of(self, predictions)


TASK = Recommendation()
