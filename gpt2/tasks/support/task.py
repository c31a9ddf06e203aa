"""Customer service: the best answer of a knowledge file to a question, and a reply written from it.

Answers are found by embeddings and by words (BM25) together; how much each counts is fitted on the validation split, as
DPR's authors did (Karpukhin et al. 2020), here by likelihood: a score is the probability that the answer is right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gpt2.data.splits import SPLITS, split_groups
from gpt2.tasks.support.config import SupportSettings
from gpt2.tasks.support.dataset import questions_of, read_source
from gpt2.tasks.support.predictor import REPLY_TOKENS, SupportPredictor
from gpt2.tasks.task import Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import nn

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.evaluation.unit_results import UnitResults
    from gpt2.model.transformer import GPT2
    from gpt2.tasks.support.dataset import PairDataset


class Support(Task):
    """Answers found by their embeddings, and replies."""

    name = "support"
    title = "Answers to questions"
    primary = "mrr"
    floor = "BM25"
    baselines = ("BM25", "TF-IDF", "embeddings alone")
    Settings = SupportSettings
    code: ClassVar[tuple[str, ...]] = (
        "gpt2.data.splits",
        "gpt2.data.tables",
        "gpt2.data.near_duplicates",
        "gpt2.tasks.support.retriever",
        "gpt2.tasks.support.retriever",
        "gpt2.evaluation.metrics",
    )
    report_code: ClassVar[tuple[str, ...]] = (
        "gpt2.tasks.support.predictor",
        "gpt2.evaluation.unit_results",
        "gpt2.generation.generate",
        "gpt2.generation.generate",
        "gpt2.generation.cpu_decoder",
        "gpt2.evaluation.behavioural_tests",
        "gpt2.tasks.support.report",
    )
    params: ClassVar[Mapping[str, Any]] = {"abstain_below": 0.0, "max_tokens": REPLY_TOKENS}
    use = "Finding the answer to a question in one's own knowledge file, for a person to read before it is sent."
    limits = (
        "It has an answer to every question, and that may be a wrong one: see recall@1, and set abstain_below.",
        "A reply is written by a small language model: it is withheld where a check fails, and may still be wrong.",
        "It was measured on questions unlike any that it knows; a question that it knows gets the known answer.",
    )
    example = "My printer is not printing."

    def prepare(self, settings: Any, source: Path, out: Path) -> dict[str, Any]:
        """Write pairs.parquet (question, answer, group, split) and settings.json. Questions that say nearly the same
        are a group: it stays in one split, and its answers are right for each of its questions."""
        from gpt2.data.near_duplicates import groups

        table = read_source(source, settings.question_field, settings.answer_field)
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
        return SupportPredictor(directory)

    def evaluate(self, directory: Path, examples: Path, out: Path) -> dict[str, Any]:
        import numpy as np
        import pandas as pd

        from gpt2.data.text import words
        from gpt2.evaluation import behavioural_tests, plots, report
        from gpt2.evaluation.significance import wilson
        from gpt2.tasks.support import report as support_report
        from gpt2.tasks.support.retriever import best_rank, tf_idf

        predictor, pairs = self.predictor(directory), pd.read_parquet(examples / "pairs.parquet")
        test = questions_of(pairs, "test")
        questions, right = test["question"].tolist(), predictor.right(test)
        cosines, found_words = predictor.parts(questions)
        scores = {
            "model": predictor.scores(questions),
            "BM25": found_words,
            "TF-IDF": tf_idf(predictor.answers, questions),
            "embeddings alone": cosines,
        }
        table = pd.DataFrame({"question": questions, "words": [len(words(q)) for q in questions]})
        told = [words(" ".join(answers)) for answers in test["answer"]]
        table["shared_words"] = [len({*words(q)} & {*a}) for q, a in zip(questions, told, strict=True)]
        ranks = {
            name: np.array([best_rank(row, items) for row, items in zip(each, right, strict=True)])
            for name, each in scores.items()
        }
        table = table.assign(**{f"rank_{name}": rank for name, rank in ranks.items()})
        best = scores["model"].argmax(1)
        replies = predictor.replies(questions, best.tolist())
        table["answer"] = [predictor.answers[i] for i in best]
        table["reply"], table["withheld"] = [text for text, _ in replies], [reason for _, reason in replies]
        table.to_parquet(out / "predictions.parquet", index=False)
        results = self.unit_results(table)
        values = {s: {m: results.value(m, s) for m in results.metrics} for s in results.systems}
        summary, shown = results.summary(), (table["withheld"] == "").to_numpy()
        found = values.pop("model") | {"replies_shown": float(shown.mean())}
        low, high = wilson(shown.sum(), np.array(len(shown)))
        summary["intervals"]["model"]["replies_shown"] = [float(low), float(high)]
        reasons = table["withheld"].replace("", "shown").value_counts()
        samples = [f"{r.question} → {r.answer} (the right one has rank {r.rank_model})" for r in table.itertuples()]
        written = [f"{r.question} → {r.reply}" for r in table[table["withheld"] == ""].itertuples()]
        return {
            "task": self.name,
            "title": self.title,
            "primary": {"name": self.primary, "higher_is_better": self.higher_is_better},
            "floor": self.floor,
            "metrics": found,
            "baselines": values,
            "counts": {"questions": len(table), "answers": len(predictor.answers)},
            "remarks": [
                "The right answer is sought among all answers; no question like the tested one was learned from.",
                "Score: {:.3g} x cosine of embeddings + {:.3g} x BM25, as the validation split has it.".format(
                    *predictor.weights
                ),
                *support_report.REMARKS,
            ],
            "samples": {"Answers": samples[:8], "Replies": written[:8]},
            "figures": [plots.recall(ranks, "questions of which a right answer", out)],
            "tables": {"Replies to the test's questions": {
                "header": ["reply", "questions"], "rows": [[r, int(n)] for r, n in reasons.items()]
            }, **behavioural_tests.tables(support_report.suite(predictor, pairs))},
            "cost": report.of_prediction(predictor, predictor.module, predictor.input_example),
            **summary,
        }  # fmt: skip

    def unit_results(self, predictions: pd.DataFrame) -> UnitResults:
        import numpy as np

        from gpt2.evaluation import unit_results
        from gpt2.evaluation.unit_results import UnitResults, key_of

        def columns(rank: np.ndarray) -> np.ndarray:
            return np.stack([rank <= 1, rank <= 5, 1 / rank, np.ones(len(rank))], axis=1).astype(float)

        def share(column: int) -> Any:
            return lambda s: s[..., column] / np.maximum(s[..., 3], 1)

        ranks = {c.removeprefix("rank_"): predictions[c].to_numpy() for c in predictions if c.startswith("rank_")}
        parts = unit_results.bins("words shared with the answer", predictions["shared_words"].to_numpy(), (0, 2))
        parts |= unit_results.bins("words", predictions["words"].to_numpy(), (4, 8))
        metrics = {"mrr": share(2), "recall_at_1": share(0), "recall_at_5": share(1)}
        systems = {name: columns(rank) for name, rank in ranks.items()}
        key = key_of(predictions["question"])
        return UnitResults("question", key, systems, metrics, "mrr", True, "mrr", parts)


TASK = Support()
