"""The report of `reasons`: likelihood of held-out sentences; form, copying and fate of written ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpt2.data.text import words
from gpt2.evaluation.significance import Bootstrap
from gpt2.evaluation.unit_results import MODEL
from gpt2.tasks.reasons.checks import Written, repeats
from gpt2.tasks.reasons.config import SWAPPED, UNIGRAM
from gpt2.tasks.reasons.dataset import sentence_dataset
from gpt2.tasks.recommendation.catalogue import named_in

if TYPE_CHECKING:
    from gpt2.evaluation.unit_results import UnitResults
    from gpt2.tasks.reasons.checks import Written
    from gpt2.tasks.reasons.predictor import ReasonsPredictor
    from gpt2.tasks.task import Task

SAMPLED_USERS = 100
"""Number of users for whom reasons are written for the report."""


def writing_report(
    predictor: ReasonsPredictor,
    pairs: Sequence[tuple[int, list[int]]],
    written: Sequence[Sequence[tuple[Written, str]]],
    people: Sequence[str],
    metrics: Mapping[str, float],
    intervals: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the report's metrics, intervals, tables, samples and remarks on written sentences, beside people's.

    `pairs` are (item, liked items) of each user, `written` their sentences with why they are withheld, and `people`
    held-out sentences of people. Intervals are over users, since a user's sentences are dependent; a maximum has none.
    """
    checks = predictor.checks
    texts = [each.text for group in written for each, _ in group]
    whose = [item for (item, _), group in zip(pairs, written, strict=True) for _ in group]
    reasons = Counter(why or "it passes" for group in written for _, why in group)
    known = {name for each in checks.attributes for name in each}
    named = [named_in(text, known) for text in texts]
    says = np.array([bool(each) for each in named])
    right = says & [each <= checks.attributes[item].keys() for each, item in zip(named, whose, strict=True)]
    chance = says * [np.mean([each <= checks.attributes[i].keys() for i, _ in pairs]) for each in named]
    shown = np.array([not group[0][1] for group in written])
    owner = np.repeat(np.arange(len(written)), [len(group) for group in written])

    def properties(sentences: Sequence[str]) -> dict[str, np.ndarray]:
        runs = checks.known.longest(sentences)
        return {
            "names_item": np.array([checks.standing.match(s) is not None for s in sentences]),
            "repeats": np.array([repeats(words(s)) for s in sentences]),
            "longest_copy": runs,
            "copied": runs > checks.most_copied,
            "verbatim": runs >= [max(1, len(words(s))) for s in sentences],
        }

    def share(values: np.ndarray, among: np.ndarray, whom: np.ndarray) -> tuple[float, list[float]]:
        """Return the ratio of the sums of `values` and `among`, and its interval over users."""
        drawn = Bootstrap(np.stack([np.bincount(whom, each, len(written)) for each in (values, among)], axis=1))

        def ratio(sums: np.ndarray) -> np.ndarray:
            return sums[..., 0] / np.maximum(sums[..., 1], 1e-9)

        return drawn.value(ratio), list(drawn.interval(ratio))

    both = own, _ = properties(texts), properties(people)
    every, each_user = np.ones(len(texts)), np.arange(len(written))
    shares = {name: share(values, every, owner) for name, values in own.items()}
    shares |= {"says_attribute": share(says, every, owner), "shown": share(shown, np.ones(len(written)), each_user)}
    if says.any():
        shares["attribute_right"] = share(right, says, owner)
        shares["attribute_right_by_chance"] = share(chance, says, owner)
    rows = {
        "names_item": "begins with a placeholder for the item",
        "repeats": "repeats itself",
        "longest_copy": "longest run of words shared with a training sentence, mean",
        "copied": f"shares a run of more than {checks.most_copied} words",
        "verbatim": "is a training sentence or a part of one",
    }
    values = {
        "attribute_right": 0.0, "attribute_right_by_chance": 0.0,
        **metrics, **{name: value for name, (value, _) in shares.items()},
        "longest_copy_max": float(own["longest_copy"].max()),
    }  # fmt: skip
    intervals = {**intervals, MODEL: {**intervals[MODEL], **{name: bounds for name, (_, bounds) in shares.items()}}}
    best = [(i, liked, *group[0]) for (i, liked), group in zip(pairs, written, strict=True)]
    after = [("; ".join(predictor.titles[i] for i in liked), item, each, why) for item, liked, each, why in best]
    return {
        "metrics": values,
        "intervals": intervals,
        "tables": {
            "Written sentences and people's held-out sentences": {
                "header": ["", "written", "people's"],
                "rows": [
                    *([name, *(round(float(each[key].mean()), 3) for each in both)] for key, name in rows.items()),
                    ["the longest such run", *(int(each["longest_copy"].max()) for each in both)],
                ],
            },
            "Outcomes of the written sentences": {
                "header": ["", "sentences"], "rows": [[why, n] for why, n in reasons.most_common()],
            },
        },
        "samples": {
            "Reasons": [f"after {a} → {checks.sentence(e.text, i)}" for a, i, e, why in after if not why][:8],
            "Withheld": [f"{why}: {checks.sentence(e.text, i)}" for _, i, e, why in after if why][:8],
        },
        "remarks": [
            f"Of {len(pairs)} users {shown.sum()} get a written reason for their last choice; the others get facts. "
            f"The best of {predictor.params['samples']} sentences is shown if it passes all checks.",
            f"{says.sum()} sentences name an attribute of the item, such as its genre; {right.sum()} of these are "
            f"right. On another user's item {chance.sum():.0f} would be right by chance.",
            "The intervals of written sentences are over users.",
        ],
    }  # fmt: skip


def evaluate(task: Task, predictor: ReasonsPredictor, examples: Path, out: Path) -> dict[str, Any]:
    """Return the report of a model on the test split of the examples; its predictions and figures go to `out`."""
    import numpy as np
    import pandas as pd

    from gpt2.evaluation import report, unit_results
    from gpt2.tasks.reasons.checks import Written
    from gpt2.tasks.reasons.predictor import losses

    predictor.use_catalogue(pd.read_parquet(examples / "items.parquet"))  # a champion may have another one
    table, learned = (pd.read_parquet(examples / f"{split}.parquet") for split in ("test", "train"))
    data, read = (sentence_dataset(each, predictor.reader) for each in (table, learned))
    cut = {f"training {name}": counts for name, counts in read.cut.items()}
    cut |= {f"held-out {name}": counts for name, counts in data.cut.items()}
    swapped = table.assign(item=np.roll(table["item"], 1), liked=np.roll(table["liked"], 1))
    counts = np.ones(predictor.module.model.config.vocab_size)
    for ids in read.sentences:
        np.add.at(counts, ids, 1)
    unigram = -np.log(counts / counts.sum())
    table["nll"], table["tokens"] = losses(predictor.module, data)
    table[f"nll of {UNIGRAM}"] = [float(unigram[ids].sum()) for ids in data.sentences]
    table[f"nll of {SWAPPED}"] = losses(predictor.module, sentence_dataset(swapped, predictor.reader))[0]
    table["bytes"] = [len(text.encode()) for text in table["text"]]
    table.to_parquet(out / "predictions.parquet", index=False)
    results = unit_results_of(task, table)
    values = {s: {m: results.value(m, s) for m in results.metrics} for s in results.systems}
    prompts = pd.read_parquet(examples / "asked.parquet")
    count = min(SAMPLED_USERS, len(prompts))
    prompts = prompts.iloc[np.unique(np.linspace(0, len(prompts) - 1, count).astype(int))]
    pairs = [(int(i), [int(j) for j in liked]) for i, liked in zip(prompts["item"], prompts["liked"], strict=True)]
    written = [predictor.written(item, liked, task.params) for item, liked in pairs]
    sampled = [(item, *each, why) for (item, _), group in zip(pairs, written, strict=True) for each, why in group]
    pd.DataFrame(sampled, columns=["item", *Written._fields, "withheld"]).to_parquet(
        out / "written.parquet", index=False
    )
    summary = results.summary()
    texts = table["text"].tolist()
    writing = writing_report(predictor, pairs, written, texts, values["model"], summary["intervals"])
    writing["remarks"].append(unit_results.sentence(cut))
    return {
        "task": task.name,
        "title": task.title,
        "primary": {"name": task.primary, "higher_is_better": task.higher_is_better},
        "floor": task.floor,
        "baselines": {name: values[name] for name in task.baselines},
        "cut": cut,
        "counts": {"sentences": len(table), "tokens": int(table["tokens"].sum()), "users": len(pairs)},
        "figures": [],
        "cost": report.prediction_cost(predictor, predictor.module, predictor.input_example, tries=3),
        **summary,
        **writing,
    }


def unit_results_of(task: Task, predictions: pd.DataFrame) -> UnitResults:
    """Return the per-unit results of the stored predictions."""
    import numpy as np

    from gpt2.evaluation import unit_results

    nll = {name: predictions[f"nll of {name}"].to_numpy() for name in task.baselines}
    tokens, size = (predictions[name].to_numpy().astype(float) for name in ("tokens", "bytes"))
    part, key = np.full(len(tokens), "sentences"), unit_results.key_of(predictions["text"], predictions["item"])
    nll = {unit_results.MODEL: predictions["nll"].to_numpy(), **nll}
    return unit_results.language_model(nll, tokens, size, part, key, "sentence")
