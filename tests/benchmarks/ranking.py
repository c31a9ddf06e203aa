"""Ranking the films of MovieLens-100k: the model with and without what people chose, beside the baselines and RecTools'
SASRec, on the same leave-last-out split; films that nobody was seen to choose, by their text; the time for one user.

SASRec runs where RECTOOLS_PYTHON names the Python of an environment with `pip install "rectools[torch]==0.19.0"`: on
Python 3.11 it wants a NumPy below 2, which this project does not.
"""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

CONTEXT, PRETRAINING, STEPS = 50, 64, 130
HELD_OUT = 0.1
"""Share of the films that are taken out of all that is learned from."""
PEER = "SASRec (RecTools)"


def run() -> None:
    from cluster.home import samples
    from gpt2.data.samples import resolve
    from gpt2.tasks.task import tasks
    from tests.benchmarks.base import pretrained

    task = tasks()["recommendation"]
    model, tokenizer, tokens = pretrained(256, PRETRAINING)
    print(f"4 x 256, {tokens / 1e6:.1f} M tokens of pretraining, {STEPS} steps of 32 histories\n")
    with tempfile.TemporaryDirectory() as folder:
        examples = Path(folder)
        settings = task.Settings()
        task.prepare(settings, Path(resolve(settings.source, samples())), examples)
        whole(tuned(model, tokenizer, task, examples), examples)
        hold_out(examples)
        cold(tuned(model, tokenizer, task, examples), examples)


def tuned(model, tokenizer, task, examples: Path):
    """The predictor after a fine-tuning like the laptop's."""
    from gpt2.analysis.small_runs import tune
    from gpt2.model.config import AdaptationConfig
    from gpt2.training.config import OptimizerConfig, TrainConfig

    rate = OptimizerConfig(learning_rate=1e-3, warmup_steps=10, schedule="cosine", final_ratio=0.0)
    train = TrainConfig(
        steps=STEPS, epochs=100, batch_size=32, micro_batch_size=32, context=CONTEXT, optimizer=rate,
        eval_samples=1, eval_every=STEPS,
    )  # fmt: skip
    return tune(model, tokenizer, task, examples, AdaptationConfig(), train).predictor


def whole(predictor, examples: Path) -> None:
    """All films, all users."""
    from gpt2.tasks.recommendation import hybrid
    from gpt2.tasks.recommendation.dataset import load_examples

    histories, items = load_examples(examples)
    before, wanted = [h[:-1] for h in histories], [int(h[-1]) for h in histories]
    text, n = predictor.by_text(before), len(items)
    popular = np.tile(hybrid.popularity([h[:-2] for h in histories], n), (len(before), 1))
    similar = hybrid.cosines(before, n)
    systems = {
        "model": predictor.with_choices(text, before),
        "its text alone": text,
        "its choices alone": predictor.with_choices(np.zeros_like(text), before),
        "popularity": popular,
        "item-kNN": hybrid.item_knn(similar)(before),
        "EASE": hybrid.ease(before, n)(before),
        "recent item-kNN": hybrid.recent_item_knn(similar)(before),
    }
    found = {name: ranks(scores, wanted, before) for name, scores in systems.items()}
    if (theirs := sasrec(histories)) is not None:
        found[PEER] = theirs
    table(found)
    print(f"\n{predictor.score_formula()[0]}\n")
    one_user(predictor, before)


def ranks(scores, wanted, seen) -> np.ndarray:
    from gpt2.evaluation.metrics import rank_of

    return np.array([rank_of(row, item, own) for row, item, own in zip(scores, wanted, seen, strict=True)])


def table(found: dict[str, np.ndarray]) -> None:
    """NDCG@10 and recall@10 with intervals, and by how much the model is above each."""
    from gpt2.evaluation import unit_results

    summary = unit_results.ranking(found, "", {}).summary()
    print("| | NDCG@10 [95 %] | recall@10 [95 %] | the model's NDCG@10 less this, paired [95 %] |")
    print("|---|---|---|---|")
    for name, each in found.items():
        cells = [name]
        for metric, value in (("ndcg_at_10", gain(each)), ("recall_at_10", (each <= 10).mean())):
            low, high = summary["intervals"][name][metric]
            cells.append(f"{value:.3f} [{low:.3f}, {high:.3f}]")
        if name == "model":
            cells.append("")
        else:
            fact = summary["differences"][name]["ndcg_at_10"]
            cells.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(fact["value"], *fact["interval"]))
        print(f"| {' | '.join(cells)} |", flush=True)


def gain(each: np.ndarray) -> float:
    return float(np.where(each <= 10, 1 / np.log2(each + 1.0), 0).mean())


def sasrec(histories) -> np.ndarray | None:
    """Its ranks of the last choices; None, and a line that says so, where it is not installed."""
    python = os.environ.get("RECTOOLS_PYTHON")
    if not python:
        print(f"{PEER} is not measured: set RECTOOLS_PYTHON; tests/benchmarks/ranking.py says to what\n")
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "histories.json", Path(folder) / "ranks.json"
        source.write_text(json.dumps([h.tolist() for h in histories]))
        command = [python, str(Path(__file__).with_name("sasrec.py")), str(source), str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
        print(f"{PEER}, tried and taken:\n{done.stdout}")
        return np.array(json.loads(out.read_text()))


def one_user(predictor, histories) -> None:
    """The time to rank all films for one user, on one thread and on all: by the clock, and of the processor."""
    import torch

    threads = torch.get_num_threads()
    for count in (1, threads):
        torch.set_num_threads(count)
        taken = []
        for history in histories[:100]:
            before = time.perf_counter(), time.process_time()
            predictor.top(predictor.scores([history])[0], history, 10)
            taken.append((1000 * (time.perf_counter() - before[0]), 1000 * (time.process_time() - before[1])))
        (clock, used), (late, most) = np.quantile(taken, [0.5, 0.95], axis=0)
        print(
            f"one user, {count} thread(s): {clock:.1f} ms (95 %: {late:.1f}), of the processor {used:.1f} ({most:.1f})"
        )
    torch.set_num_threads(threads)


def hold_out(examples: Path) -> None:
    """Take some films out of all histories, and keep in cold.json what users chose of them: [index, choices before it].

    A user counts once, with the last such film that he chose after at least four others.
    """
    import pandas as pd

    path = examples / "histories.parquet"
    histories, items = pd.read_parquet(path), pd.read_parquet(examples / "items.parquet")
    generator = np.random.default_rng(0)
    cold = set(generator.permutation(len(items))[: int(HELD_OUT * len(items))].tolist())
    kept, asked = [], []
    for own in histories["items"]:
        warm = [int(i) for i in own if i not in cold]
        places = [n for n, i in enumerate(own) if i in cold]
        if places and len(earlier := [int(i) for i in own[: places[-1]] if i not in cold]) >= 4:
            asked.append(
                {"wanted": int(own[places[-1]]), "before": earlier, "seen": [int(own[p]) for p in places[:-1]]}
            )
        kept.append(warm)
    (examples / "cold.json").write_text(json.dumps({"items": sorted(cold), "asked": asked}))
    histories = histories.assign(items=kept)[[len(warm) >= 4 for warm in kept]]
    histories.to_parquet(path, index=False)
    learned = np.concatenate([warm[:-2] for warm in histories["items"]])
    counts = np.bincount(learned, minlength=len(items))
    share = items["recent"] / items["popularity"].clip(lower=1)  # as recent as it was, of what is left
    items.assign(popularity=counts, recent=share * counts).to_parquet(examples / "items.parquet", index=False)


def cold(predictor, examples: Path) -> None:
    """Which of the films that were taken out does a user choose?"""
    from gpt2.tasks.recommendation import hybrid
    from gpt2.tasks.recommendation.dataset import load_examples

    histories, items = load_examples(examples)
    told, n = json.loads((examples / "cold.json").read_text()), len(items)
    asked, among = told["asked"], np.array(told["items"])
    assert not np.isin(np.concatenate(histories), among).any()
    read, wanted = [np.array(a["before"]) for a in asked], [a["wanted"] for a in asked]
    warm = np.setdiff1d(np.arange(n), among)
    popular = np.tile(hybrid.popularity(histories, n), (len(read), 1))
    text = predictor.by_text(read)
    similar = hybrid.cosines(read, n)
    systems = {
        "model": predictor.with_choices(text, read),
        "its text alone": text,
        "popularity": popular,
        "item-kNN": hybrid.item_knn(similar)(read),
        "EASE": hybrid.ease(read, n)(read),
        "recent item-kNN": hybrid.recent_item_knn(similar)(read),
    }
    by_chance = np.random.default_rng(1).random((len(read), n))
    for name in ("popularity", "item-kNN", "EASE", "recent item-kNN"):
        assert not systems[name][:, among].any()  # they know nothing: their order is by chance
        systems[name] = systems[name] + 1e-9 * by_chance
    print(f"\n{len(among)} films taken out of what is learned from; {len(read)} users, each asked once which of them\n")
    seen = [np.concatenate([warm, np.array(a["seen"], dtype=int)]) for a in asked]
    table({name: ranks(scores, wanted, seen) for name, scores in systems.items()})
    everywhere = ranks(
        systems["model"], wanted, [np.append(r, a["seen"]).astype(int) for r, a in zip(read, asked, strict=True)]
    )
    print(f"\nthe model among all films: NDCG@10 {gain(everywhere):.4f}, median rank {int(np.median(everywhere)):,}")
