"""Labels that a choice of texts saves: the macro-F1 of n texts labelled at random, against fewer that are chosen.

The classifier is the product's linear part (`gpt2.tasks.sentiment.ngrams`), which makes nearly all of its macro-F1, and
is fitted anew after each round of labels. What is chosen by is settled on the validation split alone.
"""

from pathlib import Path

import numpy as np

SETS, SEEDS = ("posts", "clothing", "reviews"), (0, 1, 2)
FIRST, RANDOM, SHARE, ROUNDS = 200, 1000, 0.6, 4
POOL, HELD_OUT = 4000, 1200
"""Most texts to choose from, and in the validation and the test split."""
LONGEST = 500
"""Characters at which a text is cut, for time."""
WAYS = ("unsure, diverse", "unsure and new, diverse")


def run() -> None:
    budget = round(SHARE * RANDOM)
    print(f"macro-F1 on the test split; {FIRST} random texts first, then {ROUNDS} rounds\n")
    print(f"| set | seed | {RANDOM} at random | {budget} at random | {' | '.join(WAYS)} | validation takes |")
    print("|---" * (5 + len(WAYS)) + "|", flush=True)
    gains = []
    for name in SETS:
        features, truth, classes = examples(name)
        for seed in SEEDS:
            tried = simulated(features, truth, classes, np.random.default_rng(seed), budget)
            best = max(WAYS, key=lambda way: tried[way][0])
            cells = [f"{tried[way][1]:.4f}" for way in ("all", "random", *WAYS)]
            print(f"| {name} | {seed} | {' | '.join(cells)} | {best} |", flush=True)
            gains.append([tried[way][1] - tried["all"][1] for way in ("random", *WAYS)])
    told = np.array(gains)
    for way, mean, spread in zip(("random", *WAYS), told.mean(0), told.std(0, ddof=1), strict=True):
        half = 2.306 * spread / len(told) ** 0.5  # Student's t, 8 degrees of freedom
        print(f"\n{budget} {way}, less {RANDOM} at random: {mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]")


def examples(name: str):
    """(N, features) counts of texts of a sample, their (N,) labels, and the number of labels."""
    from cluster.home import samples
    from gpt2.data.samples import columns, resolve
    from gpt2.tasks.sentiment.config import LabelledFile
    from gpt2.tasks.sentiment.dataset import masked, usable
    from gpt2.tasks.sentiment.ngrams import counts

    source = f"sample:{name}"
    table, labels, _ = usable(Path(resolve(source, samples())), LabelledFile(**columns(source)))
    table = table.sample(POOL + 2 * HELD_OUT, random_state=0)
    return counts([masked(text[:LONGEST]) for text in table["text"]]), table["label"].to_numpy(), len(labels)


def simulated(
    raw, labels: np.ndarray, classes: int, draw: np.random.Generator, budget: int
) -> dict[str, tuple[float, float]]:
    """(validation, test) macro-F1 of each way, on splits that are drawn."""
    from gpt2.tasks.sentiment.labelling import chosen, margin, unlike
    from gpt2.tasks.sentiment.ngrams import weighted

    places = np.split(draw.permutation(len(labels)), [POOL, POOL + HELD_OUT])
    pool, truth = raw[places[0]], labels[places[0]]
    n, seen = pool.shape[0], np.asarray((pool != 0).sum(0)).ravel()
    idf = (np.log((1 + n) / (1 + seen)) + 1).astype(np.float32)  # the pool's texts are known, its labels are not
    features = weighted(pool, idf)
    tests = [(weighted(raw[held], idf), labels[held]) for held in places[1:]]
    order = draw.permutation(n)

    def fitted(rows):
        return fit(features[rows], truth[rows], classes)

    def judged(model):
        return tuple(macro_f1(answers, predict(part, model).argmax(1), classes) for part, answers in tests)

    found = {"all": judged(fitted(order[:RANDOM])), "random": judged(fitted(order[:budget]))}
    for way in WAYS:
        rows = order[:FIRST]
        for size in np.linspace(FIRST, budget, ROUNDS + 1).round().astype(int)[1:]:
            scores = predict(features, fitted(rows))
            value = margin(scores)
            if "new" in way:
                value = value * (1 + unlike(features, features[rows]))
            value[rows] = -1
            rows = np.concatenate([rows, chosen(value, features, size - len(rows))])
        found[way] = judged(fitted(rows))
    return found


def fit(features, labels, classes: int):
    from gpt2.tasks.sentiment.ngrams import one_against_rest

    return one_against_rest(features, labels, classes, None)


def predict(features, model):
    from gpt2.evaluation.confidence import softmax

    weights, bias = model
    return softmax(features @ weights + bias, 1.0)


def macro_f1(truth, predicted, classes: int) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, labels=range(classes), average="macro"))
