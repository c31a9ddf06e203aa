"""The task `support`: the best answer of a knowledge file to a question, and a reply written from it.

Answers are found by embeddings and by words (BM25) together. Their weights are fitted on the validation split, as DPR's
authors did (Karpukhin et al. 2020), here by likelihood: a score is the probability that the answer is right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gpt2.data.splits import SPLITS, split_groups
from gpt2.tasks.support.config import SupportSettings
from gpt2.tasks.support.predictor import REPLY_TOKENS
from gpt2.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.evaluation.unit_results import UnitResults
    from gpt2.model.transformer import GPT2
    from gpt2.tasks.support.dataset import PairDataset
    from gpt2.tasks.support.predictor import SupportPredictor


class Support(Task):
    """Retrieval of answers, and replies."""

    name = "support"
    title = "Answers to questions"
    primary = "mrr"
    floor = "BM25"
    baselines = ("BM25", "TF-IDF", "embeddings alone")
    Settings = SupportSettings
    params: ClassVar[Mapping[str, Any]] = {"abstain_below": 0.0, "max_tokens": REPLY_TOKENS}
    use = "Finding the answer to a question in a knowledge file, for a person to read before it is sent."
    limits = (
        "It answers every question, sometimes wrongly: see recall@1, and set abstain_below.",
        "A reply is written by a small language model: it is withheld if a check fails, and may still be wrong.",
        "It was measured on questions unlike any that it knows; a known question gets the known answer.",
    )
    example = "My printer is not printing."

    def prepare(self, settings: Any, source: str | Path, out: Path) -> dict[str, Any]:
        """Write pairs.parquet (question, answer, group, split) and settings.json to `out`; return counts.

        Near-duplicate questions form a group. A group stays in one split, and its answers are right for each of its
        questions.
        """
        from gpt2.data.near_duplicates import groups
        from gpt2.tasks.support.dataset import read_source

        table = read_source(source, settings)
        rows = len(table)
        table = table.dropna().astype(str).apply(lambda column: column.str.strip())
        table = table[(table["question"] != "") & (table["answer"] != "")]
        usable = len(table)
        table = table.drop_duplicates().reset_index(drop=True)
        questions = table["question"].tolist()
        table["group"] = groups(questions)
        shares = settings.test_share, settings.validation_share
        table["split"] = split_groups(questions, table["group"].to_numpy(), *shares)
        counts: dict[str, Any] = {"rows": rows, "empty": rows - usable, "duplicates": usable - len(table)}
        counts |= {"answers": int(table["answer"].nunique()), "questions": int(table["group"].nunique())}
        for name in SPLITS:
            counts[name] = int((table["split"] == name).sum())
            if not counts[name]:
                raise ValueError(f"{source}: too few questions ({counts['questions']}) for a {name} split; add some")
        table.to_parquet(out / "pairs.parquet", index=False)
        training = {"negatives": settings.negatives, "reply_weight": settings.reply_weight}
        (out / "settings.json").write_text(json.dumps(training))
        return counts

    def dataset(self, examples: Path, split: str, tokenizer: Tokenizer, context: int) -> PairDataset:
        import pandas as pd

        from gpt2.tasks.support.dataset import PairDataset, PromptEncoder

        pairs = pd.read_parquet(examples / "pairs.parquet")
        seen = pairs[pairs["split"].isin({"train", split})]
        negatives = json.loads((examples / "settings.json").read_text())["negatives"]
        return PairDataset(seen, split, PromptEncoder(tokenizer, context), negatives)

    def module(self, model: GPT2, examples: Path, tokenizer: Tokenizer) -> nn.Module:
        import pandas as pd

        from gpt2.tasks.support.retriever import Retriever, rarity

        answers = pd.read_parquet(examples / "pairs.parquet")["answer"].unique().tolist()
        weight = json.loads((examples / "settings.json").read_text())["reply_weight"]
        return Retriever(model, rarity(answers, tokenizer, model.config.vocab_size), weight)

    def save(self, module: Any, examples: Path, tokenizer: Tokenizer, context: int, out: Path) -> None:
        import pandas as pd
        from safetensors.torch import save_file

        from gpt2 import weights
        from gpt2.store import model_files
        from gpt2.tasks.support.dataset import questions_of
        from gpt2.tasks.support.retriever import fit

        weights.save(module.model, out, tokenizer=tokenizer)
        head = {n: p.detach().float().contiguous() for n, p in module.named_parameters() if not n.startswith("model.")}
        save_file(head, out / "head.safetensors")
        pairs = pd.read_parquet(examples / "pairs.parquet")
        pairs.to_json(out / "knowledge.jsonl", orient="records", lines=True, force_ascii=False)
        model_files.write_task(out, self.name, context=context)
        predictor, held_out = self.predictor(out), questions_of(pairs, "validation")
        fitted = fit(predictor.parts(held_out["question"].tolist()), predictor.right(held_out))
        model_files.write_task(out, self.name, context=context, weights=fitted)

    def predictor(self, directory: Path) -> SupportPredictor:
        from gpt2.tasks.support.predictor import SupportPredictor

        return SupportPredictor(directory)

    def evaluate(self, directory: Path, examples: Path, out: Path) -> dict[str, Any]:
        from gpt2.tasks.support import report

        return report.evaluate(self, self.predictor(directory), examples, out)

    def unit_results(self, predictions: pd.DataFrame) -> UnitResults:
        from gpt2.tasks.support import report

        return report.unit_results_of(self, predictions)


TASK = Support()
