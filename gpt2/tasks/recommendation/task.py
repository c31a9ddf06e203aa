"""Recommendation by text: given what a user liked, in order, rank what comes next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gpt2.tasks.recommendation import catalogue
from gpt2.tasks.recommendation.config import RecommendationSettings
from gpt2.tasks.recommendation.dataset import (
    HistoryDataset,
    facts_of,
    load_disliked,
    load_examples,
    log_popularity,
    texts,
)
from gpt2.tasks.recommendation.predictor import RecommendationPredictor
from gpt2.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.evaluation.unit_results import UnitResults
    from gpt2.model.transformer import GPT2


class Recommendation(Task):
    """Rankings of a catalogue."""

    name = "recommendation"
    title = "Next item by text"
    primary = "ndcg_at_10"
    floor = "popularity"
    baselines = ("popularity", "item-kNN", "recent item-kNN", "EASE", "text alone")
    Settings = RecommendationSettings
    code: ClassVar[tuple[str, ...]] = (
        "gpt2.tasks.recommendation.catalogue",
        "gpt2.tasks.recommendation.catalogue",
        "gpt2.data.tables",
        "gpt2.tasks.recommendation.hybrid",
        "gpt2.tasks.recommendation.hybrid",
        "gpt2.evaluation.metrics",
    )
    report_code: ClassVar[tuple[str, ...]] = (
        "gpt2.evaluation.unit_results",
        "gpt2.tasks.recommendation.report",
        "gpt2.tasks.recommendation.recommend",
        "gpt2.tasks.reasons.checks",
        "gpt2.tasks.support.retriever",
        "gpt2.evaluation.behavioural_tests",
        "gpt2.tasks.recommendation.report",
    )
    params: ClassVar[Mapping[str, Any]] = {"top_k": 10}
    use = "Ranking the items of its catalogue, or candidates among them, by what a user has chosen before."
    limits = (
        "It knows the items of its catalogue only; a new one needs a new training.",
        "What was popular in its training data is favoured, and what few have chosen is rarely shown.",
        "It was measured on the last choice of each known user; what people do with recommendations is another thing.",
    )
    example: ClassVar[Any] = {"history": ["a title of the catalogue"]}

    def prepare(self, settings: RecommendationSettings, source: Path, out: Path) -> dict[str, Any]:
        """Write items.parquet, histories.parquet and catalogue.json; see
        `gpt2.tasks.recommendation.catalogue.prepare`."""
        return catalogue.prepare(source, settings, out)

    def dataset(self, examples: Path, split: str, tokenizer: Tokenizer, context: int) -> HistoryDataset:
        histories, _ = load_examples(examples)
        if split == "validation":
            return HistoryDataset([h[:-1] for h in histories], context, last_only=True)
        return HistoryDataset([h[:-2] for h in histories], context)

    def samples(self, examples: Path, info: Mapping[str, Any], context: int) -> int:
        return len(HistoryDataset([h[:-2] for h in load_examples(examples)[0]], context))

    def module(self, model: GPT2, examples: Path, tokenizer: Tokenizer) -> nn.Module:
        from gpt2.tasks.recommendation.dataset import Recommender

        _, items = load_examples(examples)
        return Recommender(model, texts(items, tokenizer, facts_of(examples)["item_tokens"]), log_popularity(items))

    def save(self, module: Any, examples: Path, tokenizer: Tokenizer, context: int, out: Path) -> None:
        from safetensors.torch import save_file

        from gpt2 import weights
        from gpt2.store import model_files
        from gpt2.tasks.recommendation import hybrid

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
        return RecommendationPredictor(directory)

    def evaluate(self, directory: Path, examples: Path, out: Path) -> dict[str, Any]:
        import numpy as np
        import pandas as pd

        from gpt2.evaluation import behavioural_tests, metrics, plots, report
        from gpt2.evaluation.unit_results import UNKNOWN
        from gpt2.tasks.recommendation import hybrid
        from gpt2.tasks.recommendation import report as recommendation_behaviour

        histories, items = load_examples(examples)
        predictor = self.predictor(directory)
        other = None  # the catalogue may have changed since the model learned
        if items["item"].tolist() != predictor.ids:
            other = recommendation_behaviour.OtherCatalogue(predictor, items["item"].tolist())
        test = np.array([h[-1] for h in histories])
        popular = hybrid.popularity([h[:-2] for h in histories], len(items))
        disliked = load_disliked(examples)
        ranks = recommendation_behaviour.ranks(other or predictor, histories, popular, disliked)
        facts = {
            "test_item": test,
            "history": [len(h) - 1 for h in histories],
            "popularity": popular[test].astype(int),
            **{f"rank_{n}": r for n, r in ranks.items()},
        }
        predictions = pd.DataFrame(facts)
        predictions.to_parquet(out / "predictions.parquet", index=False)
        ranked = {n: metrics.ranking(r) for n, r in ranks.items()}
        remarks = [other.remark()] if other else list(recommendation_behaviour.REMARKS)
        tables: dict[str, Any] = {}
        if other is None:
            some = recommendation_behaviour.recommended(predictor, histories, items, ranks["model"], disliked)
            tested = recommendation_behaviour.suite(predictor, histories, items, disliked)
            tables = {"Recommendations, and why": some} | behavioural_tests.tables(tested)
        return {
            "task": self.name,
            "title": self.title,
            "primary": {"name": self.primary, "higher_is_better": self.higher_is_better},
            "floor": self.floor,
            "metrics": ranked.pop("model"),
            "baselines": ranked,
            "counts": {"users": len(histories), "items": len(items), "never_seen": int((popular[test] == 0).sum())},
            UNKNOWN: other.unknown if other else 0,
            "remarks": remarks,
            "tables": tables,
            "samples": {"What counts": predictor.told()},
            "figures": [plots.recall(ranks, "users whose next choice", out)],
            "cost": report.of_prediction(predictor, predictor.module, predictor.input_example),
            **self.unit_results(predictions).summary(),
        }

    def unit_results(self, predictions: pd.DataFrame) -> UnitResults:
        from gpt2.evaluation import unit_results

        ranks = {c.removeprefix("rank_"): predictions[c].to_numpy() for c in predictions if c.startswith("rank_")}
        parts = unit_results.of_choices(predictions["history"].to_numpy(), predictions["popularity"].to_numpy())
        key = unit_results.key_of(predictions["test_item"], predictions["history"])
        return unit_results.ranking(ranks, key, parts)


TASK = Recommendation()
