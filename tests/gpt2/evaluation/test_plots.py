"""The ranking curve that a report shows has the recall that the metrics have, at every k."""

import numpy as np
import pytest

from gpt2.evaluation import plots
from gpt2.evaluation.metrics import ranking
from gpt2.evaluation.significance import wilson


@pytest.mark.parametrize("deepest", [700, 4])
def test_the_ranking_curve_is_recall_at_each_k(tmp_path, monkeypatch, deepest):
    drawn, finish = [], plots.finish
    monkeypatch.setattr(plots, "finish", lambda figure, *rest: drawn.append(figure) or finish(figure, *rest))
    chance = np.random.default_rng(0)
    ranks = {name: chance.integers(1, deepest + 1, 60) ** 2 for name in ("BM25", "model", "EASE")}
    ranks = {name: np.ceil(rank / deepest).astype(int) for name, rank in ranks.items()}
    ranks["BM25"][0] = deepest
    told = plots.recall(ranks, "users whose next choice", tmp_path)
    assert (tmp_path / told["file"]).read_bytes().startswith(b"\x89PNG") and "60 users whose next choice" in told[
        "title"
    ]
    [axes] = drawn[0].axes
    last, lines = min(50, deepest), {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"this model", "BM25", "EASE"} and axes.get_xscale() == "log" and axes.get_xlim() == (1, last)
    for name, rank in ranks.items():
        line = lines["this model" if name == "model" else name]
        assert line.get_xdata().tolist() == list(range(1, last + 1))
        expected = [ranking(rank, k)[f"recall_at_{k}"] for k in range(1, last + 1)]
        assert line.get_ydata() == pytest.approx(expected)
    found = {(x, round(y, 9)) for x, y in axes.collections[0].get_paths()[0].vertices.tolist()}
    shares = np.array([ranking(ranks["model"], k)[f"recall_at_{k}"] for k in range(1, last + 1)])
    for bound in wilson(60 * shares, np.full(last, 60)):
        assert {(float(k), round(y, 9)) for k, y in enumerate(bound.tolist(), 1)} <= found
