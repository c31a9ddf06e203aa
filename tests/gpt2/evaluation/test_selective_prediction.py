"""What a report says of abstaining is what the setting does, to the text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from gpt2.evaluation import confidence as evaluation_confidence
from gpt2.evaluation import plots
from gpt2.pages.html import numeric

LABELS = ["negative", "neutral", "positive"]


def answers(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth and probabilities of a model that is surer where it is right; some are equally confident."""
    chance = np.random.default_rng(seed)
    truth, logits = chance.integers(0, 3, count), chance.normal(size=(count, 3)).round(1)
    logits[np.arange(count), truth] += 1.0
    powers = np.exp(2 * logits)
    return truth, powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("count", [1, 7, 400])
def test_each_row_is_what_a_plain_loop_finds(count):
    truth, probabilities = answers(count)
    for row in evaluation_confidence.rows(truth, probabilities, LABELS):
        kept = [i for i in range(count) if max(probabilities[i]) >= row["abstain_below"]]
        expected, predicted = truth[kept], probabilities[kept].argmax(1)
        assert (row["texts"], row["coverage"]) == (len(kept), len(kept) / count)
        assert row["accuracy"] == pytest.approx(accuracy_score(expected, predicted))
        f1 = f1_score(expected, predicted, labels=[0, 1, 2], average="macro", zero_division=0)
        assert row["macro_f1"] == pytest.approx(f1)
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
        for i, label in enumerate(LABELS):
            of_label = [j for j in range(count) if truth[j] == i]
            if of_label:
                assert row["left_out"][label] == pytest.approx(len(set(of_label) - set(kept)) / len(of_label))


confidences = st.lists(
    st.one_of(st.floats(1 / 3, 1), st.sampled_from([0.5, 0.57, 0.999, 1.0, np.nextafter(0.57, 0)])), min_size=1
)


@given(confidences, st.floats(0.001, 1), st.floats(0.001, 1))
def test_a_higher_setting_labels_no_more_and_never_fewer_than_asked(values, one, other):
    confidence, few, many = np.array(values), min(one, other), max(one, other)
    strict, mild = evaluation_confidence.threshold(confidence, few), evaluation_confidence.threshold(confidence, many)
    kept = [(confidence >= least).mean() for least in (strict, mild)]
    assert strict >= mild and kept[0] <= kept[1]
    assert kept[0] >= few - 1e-9 and kept[1] >= many - 1e-9
    step = 10**-evaluation_confidence.DIGITS
    assert strict == round(strict, evaluation_confidence.DIGITS) and (
        few == 1 or (confidence >= strict + 2 * step).mean() < few
    )


@given(st.integers(1, 300), st.integers(0, 5))
def test_coverage_falls_as_the_setting_rises(count, seed):
    found = evaluation_confidence.rows(*answers(count, seed), LABELS)
    settings, coverages = ([row[name] for row in found] for name in ("abstain_below", "coverage"))
    assert settings == sorted(set(settings)) and coverages == sorted(coverages, reverse=True)
    assert (settings[0], coverages[0]) == (0, 1)


def test_the_curve_goes_through_the_rows(tmp_path, monkeypatch):
    drawn, finish = [], plots.finish
    monkeypatch.setattr(plots, "finish", lambda figure, *rest: drawn.append(figure) or finish(figure, *rest))
    truth, probabilities = answers(300)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    found = evaluation_confidence.rows(truth, probabilities, LABELS)
    told = plots.abstaining({"model": (confidence, right), "other": (confidence, ~right)}, found, tmp_path)
    assert (tmp_path / told["file"]).read_bytes().startswith(b"\x89PNG")
    [axes] = drawn[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    points = dict(zip(*(lines["this model"].get_data()), strict=True))
    for row in found:  # the curve has each confidence that occurs; a row's setting leaves the same texts
        assert points[row["coverage"]] == pytest.approx(row["accuracy"])
    assert lines["other"].get_ydata() == pytest.approx(1 - np.array(list(points.values())))
    assert min(points) >= evaluation_confidence.FEW / 300
    assert {text.get_text() for text in axes.texts} == {f"{row['abstain_below']:g}" for row in found[1:]}


def test_a_model_that_is_equally_sure_of_all_is_said_to_be():
    truth, same = np.array([0, 1, 2, 0]), np.tile([0.5, 0.3, 0.2], (4, 1))
    found = evaluation_confidence.rows(truth, same, LABELS)
    assert [row["texts"] for row in found] == [4, 4] and "equally confident" in evaluation_confidence.remark(found)
    [heading] = evaluation_confidence.table(found)
    [_, *settings] = evaluation_confidence.table(found)[heading]["rows"]
    assert all(numeric(cell) for row in settings for cell in row[:-1])
    told = evaluation_confidence.remark(evaluation_confidence.rows(*answers(400), LABELS))
    assert told.startswith("With abstain_below=0.") and " labels 80% of these texts" in told
