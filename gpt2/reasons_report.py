"""What a report says of written reasons: their form, copying, what they name, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2.reasons import Written, named_in, repeats
from gpt2.search import words

if TYPE_CHECKING:
    from gpt2.tasks.reasons import ReasonsPredictor


def looked_at(
    predictor: ReasonsPredictor,
    pairs: Sequence[tuple[int, list[int]]],
    written: Sequence[Sequence[tuple[Written, str]]],
    people: Sequence[str],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """The report's metrics, tables, samples and remarks on what was written, beside held-out sentences of people."""
    checks = predictor.checks
    texts = [each.text for group in written for each, _ in group]
    whose = [item for (item, _), group in zip(pairs, written, strict=True) for _ in group]
    reasons = Counter(why or "it passes" for group in written for _, why in group)
    known = {name for each in checks.attributes for name in each}
    says = [(named_in(text, known), item) for text, item in zip(texts, whose, strict=True)]
    says = [(named, item) for named, item in says if named]
    right = [named <= checks.attributes[item].keys() for named, item in says]
    chance = [float(np.mean([named <= checks.attributes[i].keys() for i, _ in pairs])) for named, _ in says]
    shown = [not group[0][1] for group in written]

    def of(sentences: Sequence[str]) -> dict[str, float]:
        runs = checks.known.longest(sentences)
        return {
            "names_item": float(np.mean([checks.standing.match(s) is not None for s in sentences])),
            "repeats": float(np.mean([repeats(words(s)) for s in sentences])),
            "longest_copy": float(runs.mean()),
            "longest_copy_max": float(runs.max()),
            "copied": float(np.mean(runs > checks.most_copied)),
            "verbatim": float(np.mean(runs >= [max(1, len(words(s))) for s in sentences])),
        }

    own, theirs = of(texts), of(people)
    told = {
        "names_item": "begins with what stands for the item",
        "repeats": "repeats itself",
        "longest_copy": "longest run of words that is in the training sentences, mean",
        "longest_copy_max": "the same, most",
        "copied": f"a run of more than {checks.most_copied} words",
        "verbatim": "is, however short, a training sentence or a part of one",
    }
    found = {
        **metrics, **own, "says_attribute": len(says) / len(texts), "shown": float(np.mean(shown)),
        "attribute_right": float(np.mean(right)) if right else 0.0,
        "attribute_right_by_chance": float(np.mean(chance)) if chance else 0.0,
    }  # fmt: skip
    best = [(i, liked, *group[0]) for (i, liked), group in zip(pairs, written, strict=True)]
    after = [("; ".join(predictor.titles[i] for i in liked), item, each, why) for item, liked, each, why in best]
    return {
        "metrics": found,
        "tables": {
            "Sentences that were written, and people's that were held out": {
                "header": ["", "written", "people's"],
                "rows": [[name, round(own[key], 3), round(theirs[key], 3)] for key, name in told.items()],
            },
            "What becomes of the written sentences": {
                "header": ["", "sentences"], "rows": [[why, n] for why, n in reasons.most_common()],
            },
        },
        "samples": {
            "Reasons": [f"after {a} → {checks.sentence(e.text, i)}" for a, i, e, why in after if not why][:8],
            "Withheld": [f"{why}: {checks.sentence(e.text, i)}" for _, i, e, why in after if why][:8],
        },
        "remarks": [
            f"Of {len(pairs)} users {sum(shown)} get a written reason for their last choice, the others facts alone: "
            f"of {predictor.params['samples']} sentences each the best is shown if it passes all checks.",
            f"{len(says)} sentences say what the item is, such as its genre; {sum(right)} of these are right, "
            f"{sum(chance):.0f} would be if they were on another user's item.",
        ],
    }  # fmt: skip
