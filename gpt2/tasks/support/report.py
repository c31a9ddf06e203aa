"""The report of `support`: rank of the right answer beside BM25 and TF-IDF; behavioural tests on people's questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpt2.data.splits import SPLITS
from gpt2.data.text import has_characters, mostly_characters, terms, words
from gpt2.evaluation.behavioural_tests import (
    DIRECTION,
    INVARIANCE,
    MINIMUM,
    SLACK,
    UNSPACED_REMARK,
    Test,
    Texts,
    changed,
    run_on_texts,
    typo,
)
from gpt2.tasks.support.dataset import questions_of

if TYPE_CHECKING:
    from gpt2.evaluation.unit_results import UnitResults
    from gpt2.tasks.support.predictor import SupportPredictor
    from gpt2.tasks.task import Task

QUESTIONS = 200
"""Most questions sampled for a test, the same ones each time."""
REMARKS = (
    "Letter case and spaces of a question do not affect the answer: it is lower-cased and read word by word.",
    "A near-duplicate of a known question gets the known answer. Behavioural tests of known questions include this "
    "lookup; the other tests use the ranking alone.",
)


def suite(predictor: SupportPredictor, pairs: pd.DataFrame) -> list[Test]:
    """Return the behavioural tests of a model's ranking of answers.

    `pairs` are the examples (question, answer, group, split). The list is empty if the model does not know all answers,
    such as a champion of an older knowledge file. Courtesies and typos are for English, not for scripts without spaces.
    """
    if not {*pairs["answer"]} <= {*predictor.answers}:
        return []
    drawn = np.random.default_rng(0)
    train, test = (sample(questions_of(pairs, split), drawn) for split in ("train", "test"))
    known = sample(pd.concat([questions_of(pairs, split) for split in SPLITS]), drawn)
    both = list(zip(train["question"], predictor.right(train), strict=True))
    learned = finds("a training question finds its answer", both)
    right = predictor.right(known)
    politely = [(polite(question), items) for question, items in zip(known["question"], right, strict=True)]
    mistyped = [
        (new, items)
        for question, items in zip(known["question"], right, strict=True)
        if (new := typo(question, drawn)) != question
    ]
    with_lookup = [
        finds("a known question, asked politely, gets its answer", politely),
        finds("a known question with a typo gets its answer", mistyped),
    ]
    changes: dict[str, Callable[[str], str]] = {
        "'please' before it changes nothing": polite,
        "'thanks' behind it changes nothing": lambda question: f"{question} Thanks!",
        "a question mark more or less changes nothing": marked,
        "a typo changes nothing": lambda question: typo(question, drawn),
    }
    if mostly_characters(pairs["question"].tolist()):
        with_lookup = []
        changes = {name: change for name, change in changes.items() if change is marked}
    ranked = [invariant(name, test["question"].tolist(), change) for name, change in changes.items()]
    ranked.append(towards(test["question"].tolist(), predictor.right(test), predictor.answers))

    def describe(row: np.ndarray) -> str:
        return f"{shorten(predictor.answers[row.argmax()], 60, placeholder=' …')} ({row.max():.0%})"

    return [
        *run_on_texts([learned], predictor.scores, describe, drawn=True),
        *run_on_texts(with_lookup, predictor.scores_with_lookup, describe, drawn=True),
        *run_on_texts(ranked, predictor.scores, describe, drawn=True),
    ]


def sample(questions: pd.DataFrame, drawn: np.random.Generator) -> pd.DataFrame:
    """Return at most `QUESTIONS` random rows, in order."""
    chosen = drawn.choice(len(questions), min(QUESTIONS, len(questions)), replace=False)
    return questions.iloc[np.sort(chosen)]


def finds(name: str, cases: Sequence[tuple[str, Sequence[int]]]) -> Texts:
    """Return the test that each text gets one of its right answers."""

    def wrong(after: np.ndarray, _: np.ndarray) -> np.ndarray:
        return np.array([row.argmax() not in right for row, (_, right) in zip(after, cases, strict=True)])

    return Texts(MINIMUM, name, [text for text, _ in cases], None, wrong)


def polite(question: str) -> str:
    """Return the question with "please" before it."""
    return f"Please, {question}"


def marked(question: str) -> str:
    """Return the question with its final question mark removed, or with one added."""
    bare, sign = question.rstrip("?!. ？！。"), "？" if has_characters(question) else "?"
    return bare if question.rstrip().endswith(("?", "？")) else f"{bare}{sign}"


def invariant(name: str, questions: Sequence[str], change: Callable[[str], str]) -> Texts:
    """Return the test that a change leaves the answers as they are; unchanged questions are left out."""
    both = [(question, new) for question in questions if (new := change(question)) != question and new.strip()]
    return Texts(INVARIANCE, name, [new for _, new in both], [old for old, _ in both], changed)


def towards(questions: Sequence[str], right: Sequence[Sequence[int]], answers: Sequence[str]) -> Texts:
    """Return the test that a word of the right answer, added to the question, does not make it less likely.

    It is the answer's longest word that is not in the question, in scripts without spaces two characters.
    """
    old, new, wanted = [], [], []
    for question, items in zip(questions, right, strict=True):
        others = [term for term in terms(answers[items[0]]) if term not in terms(question)]
        if others:
            old.append(question)
            new.append(f"{question} {max(others, key=len)}")
            wanted.append(items[0])

    def less(after: np.ndarray, before: np.ndarray) -> np.ndarray:
        at = np.arange(len(wanted))
        return after[at, wanted] < before[at, wanted] - SLACK

    return Texts(DIRECTION, "a word of the right answer does not make it less likely", new, old, less)


def evaluate(task: Task, predictor: SupportPredictor, examples: Path, out: Path) -> dict[str, Any]:
    """Return the report of a model on the test split of the examples; its predictions and figures go to `out`."""
    import numpy as np
    import pandas as pd

    from gpt2.evaluation import behavioural_tests, plots, report
    from gpt2.evaluation.significance import wilson
    from gpt2.tasks.support.retriever import best_rank, tf_idf

    pairs = pd.read_parquet(examples / "pairs.parquet")
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
    answer_words = [words(" ".join(answers)) for answers in test["answer"]]
    table["shared_words"] = [len({*words(q)} & {*a}) for q, a in zip(questions, answer_words, strict=True)]
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
    results = unit_results_of(task, table)
    values = {s: {m: results.value(m, s) for m in results.metrics} for s in results.systems}
    summary, shown = results.summary(), (table["withheld"] == "").to_numpy()
    model_metrics = values.pop("model") | {"replies_shown": float(shown.mean())}
    low, high = wilson(shown.sum(), np.array(len(shown)))
    summary["intervals"]["model"]["replies_shown"] = [float(low), float(high)]
    reasons = table["withheld"].replace("", "shown").value_counts()
    samples = [f"{r.question} → {r.answer} (the right one has rank {r.rank_model})" for r in table.itertuples()]
    written = [f"{r.question} → {r.reply}" for r in table[table["withheld"] == ""].itertuples()]
    return {
        "task": task.name,
        "title": task.title,
        "primary": {"name": task.primary, "higher_is_better": task.higher_is_better},
        "floor": task.floor,
        "metrics": model_metrics,
        "baselines": values,
        "counts": {"questions": len(table), "answers": len(predictor.answers)},
        "remarks": [
            "The right answer is searched among all answers; no similar question was in the training split.",
            "Score: {:.3g} x cosine of embeddings + {:.3g} x BM25, fitted on the validation split.".format(
                *predictor.weights
            ),
            *REMARKS,
            *([UNSPACED_REMARK.format("Tests of courtesies and typos")] if mostly_characters(questions) else []),
        ],
        "samples": {"Answers": samples[:8], "Replies": written[:8]},
        "figures": [plots.recall(ranks, "questions of which a right answer", out)],
        "tables": {"Replies to the test's questions": {
            "header": ["reply", "questions"], "rows": [[r, int(n)] for r, n in reasons.items()]
        }, **behavioural_tests.tables(suite(predictor, pairs))},
        "cost": report.prediction_cost(predictor, predictor.module, predictor.input_example),
        **summary,
    }  # fmt: skip


def unit_results_of(task: Task, predictions: pd.DataFrame) -> UnitResults:
    """Return the per-unit results of the stored predictions."""
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
