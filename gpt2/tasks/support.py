"""Customer service: the best answer of a knowledge file to a question, and a reply written from it.

Answers are found by embeddings and by words (BM25) together; how much each counts is fitted on the validation split, as
DPR's authors did (Karpukhin et al. 2020), here by likelihood: a score is the probability that the answer is right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from gpt2.config import OptimizerConfig, TrainConfig, operational
from gpt2.splits import SPLITS, split_groups
from gpt2.task import Task, TaskSettings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn

    from gpt2.evidence import Evidence
    from gpt2.model import GPT2
    from gpt2.retrieval import PairDataset
    from gpt2.tokenizer import Tokenizer

REPLY_TOKENS = 48


class SupportSettings(TaskSettings):
    """Customer-service answers: questions with their answers. Off unless `enabled` is set."""

    enabled: bool = False
    """Whether the pipeline runs this task."""
    source: str = Field("sample:support", min_length=1)
    """The knowledge file, .csv, .jsonl or .parquet, with a question and an answer per row; or `sample:support`."""
    num_workers: int | None = operational(1, ge=1, le=4096)
    """Workers of this task's training: one is enough for what people write by hand."""
    question_field: str = Field("question", min_length=1)
    """The column of the questions."""
    answer_field: str = Field("answer", min_length=1)
    """The column of the answers."""
    validation_share: float = Field(0.1, gt=0, le=0.4)
    """Share of the questions that training is watched on."""
    test_share: float = Field(0.25, gt=0, le=0.5)
    """Share of the questions that the report is made from."""
    negatives: int = Field(64, ge=1, le=4096)
    """Wrong answers that a question's right one is told from at each step, the same for all questions of a batch."""
    reply_weight: float = Field(0.2, ge=0, le=10)
    """Weight of the reply's next-token loss beside the retrieval's."""
    train: TrainConfig = TrainConfig(
        epochs=10,
        batch_size=32,
        micro_batch_size=16,
        context=128,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, schedule="cosine", final_ratio=0.0),
        eval_every=25,
        eval_samples=128,
        checkpoint_every=50,
        log_every=10,
    )
    """Fine-tuning: length, batches, rates. The context holds question, known answer and reply."""


class Support(Task):
    """Answers found by their embeddings, and replies."""

    name = "support"
    title = "Answers to questions"
    primary = "mrr"
    floor = "BM25"
    baselines = ("BM25", "TF-IDF", "embeddings alone")
    Settings = SupportSettings
    code: ClassVar[tuple[str, ...]] = (
        "gpt2.splits", "gpt2.tables", "gpt2.duplicates", "gpt2.retrieval", "gpt2.search", "gpt2.metrics"
    )  # fmt: skip
    report_code: ClassVar[tuple[str, ...]] = (
        "gpt2.replies", "gpt2.slices", "gpt2.generate", "gpt2.sampling", "gpt2.decode",
        "gpt2.behaviour", "gpt2.support_behaviour",
    )  # fmt: skip
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
        from gpt2.duplicates import groups

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

        from gpt2.retrieval import PairDataset, Reader

        pairs = pd.read_parquet(examples / "pairs.parquet")
        seen = pairs[pairs["split"].isin({"train", split})]
        negatives = json.loads((examples / "settings.json").read_text())["negatives"]
        return PairDataset(seen, split, Reader(tokenizer, context), negatives)

    def module(self, model: GPT2, examples: Path, tokenizer: Tokenizer) -> nn.Module:
        import pandas as pd

        from gpt2.retrieval import Retriever, rarity

        answers = pd.read_parquet(examples / "pairs.parquet")["answer"].unique().tolist()
        weight = json.loads((examples / "settings.json").read_text())["reply_weight"]
        return Retriever(model, rarity(answers, tokenizer, model.config.vocab_size), weight)

    def save(self, module: Any, examples: Path, tokenizer: Tokenizer, context: int, out: Path) -> None:
        import pandas as pd
        from safetensors.torch import save_file

        from gpt2 import weights
        from gpt2.search import fit

        weights.save(module.model, out, tokenizer=tokenizer)
        head = {n: p.detach().float().contiguous() for n, p in module.named_parameters() if not n.startswith("model.")}
        save_file(head, out / "head.safetensors")
        pairs = pd.read_parquet(examples / "pairs.parquet")
        pairs.to_json(out / "knowledge.jsonl", orient="records", lines=True, force_ascii=False)
        weights.write_task(out, self.name, context=context)
        predictor, held_out = self.predictor(out), questions_of(pairs, "validation")
        fitted = fit(predictor.parts(held_out["question"].tolist()), predictor.right(held_out))
        weights.write_task(out, self.name, context=context, weights=fitted)

    def predictor(self, directory: Path) -> SupportPredictor:
        return SupportPredictor(directory)

    def evaluate(self, directory: Path, examples: Path, out: Path) -> dict[str, Any]:
        import numpy as np
        import pandas as pd

        from gpt2 import behaviour, cost, plots, support_behaviour
        from gpt2.search import best_rank, tf_idf, words
        from gpt2.significance import wilson

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
        evidence = self.evidence(table)
        values = {s: {m: evidence.value(m, s) for m in evidence.metrics} for s in evidence.systems}
        summary, shown = evidence.summary(), (table["withheld"] == "").to_numpy()
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
                *support_behaviour.REMARKS,
            ],
            "samples": {"Answers": samples[:8], "Replies": written[:8]},
            "figures": [plots.recall(ranks, "questions of which a right answer", out)],
            "tables": {"Replies to the test's questions": {
                "header": ["reply", "questions"], "rows": [[r, int(n)] for r, n in reasons.items()]
            }, **behaviour.tables(support_behaviour.suite(predictor, pairs))},
            "cost": cost.of_prediction(predictor, predictor.module, predictor.input_example),
            **summary,
        }  # fmt: skip

    def evidence(self, predictions: pd.DataFrame) -> Evidence:
        import numpy as np

        from gpt2 import slices
        from gpt2.evidence import Evidence, key_of

        def columns(rank: np.ndarray) -> np.ndarray:
            return np.stack([rank <= 1, rank <= 5, 1 / rank, np.ones(len(rank))], axis=1).astype(float)

        def share(column: int) -> Any:
            return lambda s: s[..., column] / np.maximum(s[..., 3], 1)

        ranks = {c.removeprefix("rank_"): predictions[c].to_numpy() for c in predictions if c.startswith("rank_")}
        parts = slices.bins("words shared with the answer", predictions["shared_words"].to_numpy(), (0, 2))
        parts |= slices.bins("words", predictions["words"].to_numpy(), (4, 8))
        metrics = {"mrr": share(2), "recall_at_1": share(0), "recall_at_5": share(1)}
        systems = {name: columns(rank) for name, rank in ranks.items()}
        key = key_of(predictions["question"])
        return Evidence("question", key, systems, metrics, "mrr", True, "mrr", parts)


class SupportPredictor:
    """Questions to answers and replies."""

    input_example = ("My printer is not printing.",)

    def __init__(self, directory: Path):
        import pandas as pd

        from gpt2 import files, weights
        from gpt2.duplicates import shingles
        from gpt2.retrieval import Reader, Retriever, rarity
        from gpt2.search import BM25
        from gpt2.tokenizer import Tokenizer

        with open(directory / "knowledge.jsonl", encoding="utf-8") as lines:
            pairs = pd.DataFrame([json.loads(line) for line in lines])
        self.answers: list[str] = pairs["answer"].unique().tolist()
        index = {answer: i for i, answer in enumerate(self.answers)}
        self.known = [(shingles(q), index[a]) for q, a in zip(pairs["question"], pairs["answer"], strict=True)]
        trunk = weights.load(directory)
        self.tokenizer = Tokenizer.load(directory, trunk.config.vocab_size)
        self.module = Retriever(trunk, rarity(self.answers, self.tokenizer, trunk.config.vocab_size), 0.0)
        path = directory / "head.safetensors"
        head, own = files.read(path), dict(self.module.named_parameters())
        files.check(path, head, {name: value for name, value in own.items() if not name.startswith("model.")})
        self.module.load_state_dict(head, strict=False)
        self.module.eval()
        facts = weights.read_task(directory)
        self.reader, self.search = Reader(self.tokenizer, facts["context"]), BM25(self.answers)
        self.weights: list[float] = facts.get("weights", [1.0, 0.0])
        """Of the cosine and of BM25."""
        self.embeddings = self.embed(self.reader.answers(self.answers))

    def embed(self, rows: list[list[int]]) -> Tensor:
        """(N, width) unit vectors of encoded texts."""
        import torch

        from gpt2.heads import pad

        with torch.inference_mode():
            return torch.cat([self.module.embed(*pad(rows[at : at + 64])) for at in range(0, len(rows), 64)])

    def parts(self, questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(questions, answers): cosines of embeddings, and BM25."""
        cosines = self.embed(self.reader.questions(questions)) @ self.embeddings.T
        return cosines.double().numpy(), self.search.scores(questions)

    def scores(self, questions: Sequence[str]) -> np.ndarray:
        """(questions, answers) probabilities that an answer is the right one."""
        from scipy.special import softmax

        return softmax(sum(w * part for w, part in zip(self.weights, self.parts(questions), strict=True)), axis=1)

    def right(self, test: pd.DataFrame) -> list[list[int]]:
        """The right answers' indices of each row of `questions_of`; none of answers that came after the model."""
        index = {answer: i for i, answer in enumerate(self.answers)}
        return [[index[answer] for answer in dict.fromkeys(answers) if answer in index] for answers in test["answer"]]

    def lookup(self, question: str) -> int | None:
        """The answer of a known question that says nearly the same, as `gpt2.duplicates` has it."""
        from gpt2.duplicates import LIKE, jaccard, shingles

        asked = shingles(question)
        likeness, place = max((jaccard(asked, known), -n) for n, (known, _) in enumerate(self.known))
        return self.known[-place][1] if likeness >= LIKE else None

    def looked_up(self, questions: Sequence[str]) -> np.ndarray:
        """(questions, answers) probabilities: the `scores`, but 1 for the answer of a known question."""
        found = self.scores(questions)
        for row, question in zip(found, questions, strict=True):
            if (answer := self.lookup(question)) is not None:
                row[:] = 0
                row[answer] = 1
        return found

    def replies(self, questions: Sequence[str], best: Sequence[int], most: int = REPLY_TOKENS) -> list[tuple[str, str]]:
        """(reply, why it is withheld, "" where it is not) to each question from the answer that was found."""
        from gpt2.generate import generate
        from gpt2.replies import withheld

        if not questions:
            return []
        asked, known = self.reader.questions(questions), self.reader.known([self.answers[i] for i in best])
        prompts = [self.reader.prompt(q, k) for q, k in zip(asked, known, strict=True)]
        room = self.module.model.config.n_positions - max(map(len, prompts))
        limit = min(most, room)
        found = generate(self.module.model, self.tokenizer.end_of_text, prompts, limit, temperature=0)
        texts = [(self.tokenizer.decode(ids).strip(), len(ids) < limit) for ids in found]
        return [
            (text, withheld(text, ended, q, self.answers[i], self.answers))
            for (text, ended), q, i in zip(texts, questions, best, strict=True)
        ]

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame:
        """A row per question: `answer`, `score`, `reply` and `withheld`, why there is no reply.

        `params`: `abstain_below`, the probability below which answer and reply are "": nothing fits; `max_tokens` of a
        reply, 0 for none. A known question's answer has the score 1. `ValueError` for what is no text.
        """
        import pandas as pd

        from gpt2.task import checked_texts

        questions = checked_texts(inputs)
        least, most = float(params.get("abstain_below", 0.0)), int(params.get("max_tokens", REPLY_TOKENS))
        if not 0 <= least <= 1 or most < 0:
            raise ValueError(f"abstain_below={least:g}, max_tokens={most}; give 0 to 1, and 0 or more")
        if not questions:
            return pd.DataFrame(columns=["answer", "score", "reply", "withheld"])
        best = self.looked_up(questions)
        chosen, score = best.argmax(1).tolist(), best.max(1).tolist()
        fits = [i for i in range(len(questions)) if score[i] >= least]
        replies = [("", "nothing fits")] * len(questions)
        if most:
            found = self.replies([questions[i] for i in fits], [chosen[i] for i in fits], most)
            for i, reply in zip(fits, found, strict=True):
                replies[i] = reply
        answers = [self.answers[answer] if i in set(fits) else "" for i, answer in enumerate(chosen)]
        shown = ["" if reason else reply for reply, reason in replies]
        reasons = [reason for _, reason in replies]
        return pd.DataFrame({"answer": answers, "score": score, "reply": shown, "withheld": reasons})


def questions_of(pairs: pd.DataFrame, split: str) -> pd.DataFrame:
    """A row per group of a split: `question`, the first of it, and `answer`, a list of all its right ones."""
    chosen = pairs[pairs["split"] == split].groupby("group", sort=True)
    return chosen.agg({"question": "first", "answer": list})


def read_source(source: Path, question: str, answer: str) -> pd.DataFrame:
    """Columns question and answer; of a folder of conversations (chatterbot-corpus), the first two lines of each."""
    import pandas as pd
    import yaml

    from gpt2.tables import missing, read_table

    if source.is_dir():
        found = [yaml.safe_load(path.read_text("utf-8"))["conversations"] for path in sorted(source.glob("*.yml"))]
        pairs = [(c[0], c[1]) for file in found for c in file if isinstance(c, list) and len(c) > 1]
        if not pairs:
            raise ValueError(f"{source} has no conversations in .yml files; give a .csv, .jsonl or .parquet file")
        return pd.DataFrame(pairs, columns=["question", "answer"])
    table = read_table(source)
    if fault := missing(table, {"question_field": question, "answer_field": answer}):
        raise ValueError(f"{source} has {fault}")
    return table[[question, answer]].set_axis(["question", "answer"], axis=1)


TASK = Support()
