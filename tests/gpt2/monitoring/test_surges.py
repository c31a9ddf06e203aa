"""The rule's promises, by simulation: few false alarms where nothing but chance is at work, surges found soon."""

import numpy as np
import pytest
from scipy.stats import betabinom

from gpt2.monitoring.alerts import HISTORY, MIN_HISTORY, PER_YEAR, Rule, judge, upper_tail
from gpt2.monitoring.index import PROMISED


def shuffled(generator: np.random.Generator, windows: int, posts: float, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels in an order that says nothing, dealt to windows of uneven size: (negative, posts) of each."""
    n = generator.poisson(posts * generator.gamma(4, 0.25, windows))
    labels = np.zeros(n.sum(), int)
    labels[: round(share * len(labels))] = 1
    totals = np.r_[0, np.cumsum(generator.permutation(labels))]
    ends = np.cumsum(n)
    return totals[ends] - totals[ends - n], n


@pytest.mark.parametrize(("window", "topic_years"), [("day", 80), ("hour", 4)])
def test_shuffled_posts_raise_at_most_one_alert_per_topic_and_year(window, topic_years):
    generator, rule = np.random.default_rng(0), Rule(window)
    settings = [(40, 0.1), (40, 0.3), (120, 0.3), (60, 0.6)]
    alarms = 0
    for number in range(topic_years):
        posts, share = settings[number % len(settings)]
        k, n = shuffled(generator, PER_YEAR[window], posts, share)
        alarms += len(judge(k, n, rule).starts())
    assert alarms <= topic_years


@pytest.mark.parametrize(
    ("window", "share"), [("day", 0.05), ("day", 0.1), ("day", 0.2), ("day", 0.45), ("hour", 0.05), ("hour", 0.45)]
)
def test_a_doubling_is_found_within_two_windows_in_95_of_100_cases(window, share):
    """With the volume that is promised, `PROMISED` negative posts in a usual window, in windows of uneven size."""
    generator, found, past = np.random.default_rng(1), 0, min(HISTORY[window], 100) + 1
    for _ in range(100):
        n = generator.poisson(PROMISED / share * generator.gamma(4, 0.25, past + 2))
        k = generator.binomial(n, share)
        k[-2:] = generator.binomial(n[-2:], 2 * share)
        found += judge(k, n, Rule(window)).surge[-2:].any()
    assert found >= 95


def test_what_varies_by_itself_is_no_surge():
    """Shares that change from day to day are the history's own; a rule for mere chance would alarm all the time."""
    generator = np.random.default_rng(2)
    n = np.full(20 * 365, 100)
    k = generator.binomial(n, generator.beta(0.3 * 40, 0.7 * 40, len(n)))
    assert len(judge(k, n, Rule("day")).starts()) <= 20
    assert (upper_tail(k, n, np.full(len(n), 3e5), np.full(len(n), 7e5)) < Rule("day").level).sum() > 200


def test_the_tail_is_the_beta_binomials():
    k, n = np.array([0, 3, 10, 40, 7]), np.array([20, 20, 10, 90, 50])
    a, b = np.array([2.0, 5, 30, 8, 0.7]), np.array([9.0, 11, 20, 30, 4])
    assert np.allclose(upper_tail(k, n, a, b), betabinom.sf(k - 1, n, a, b))
    assert np.allclose(upper_tail(k, n, a, b, cells=1), betabinom.sf(k - 1, n, a, b))


def test_too_few_posts_or_too_little_history_is_not_judged():
    n, k = np.full(60, 40), np.full(60, 10)
    k[10], k[40], n[41], k[41], n[50] = 40, 40, 8, 8, 0
    k[50] = 0
    judged = judge(k, n, Rule("day"))
    assert np.isnan(judged.p_value[: MIN_HISTORY["day"] + 1]).all() and not judged.surge[10]
    assert judged.starts().tolist() == [40]  # 41 and 42 go on with it: they are asked together with the window before
    assert np.isnan(judged.p_value[50])
    alone = judge(np.array([*[0, 1] * 30, 5]), np.full(61, 5), Rule("day", min_posts=30))
    assert np.isnan(alone.p_value).all()
    with pytest.raises(ValueError, match="0 <= negative <= posts"):
        judge(np.array([3]), np.array([2]), Rule())


def test_windows_of_another_model_are_no_history():
    n, k = np.full(60, 60), np.full(60, 10)
    k[30:] = 30
    assert judge(k, n, Rule("day")).surge[30]
    assert not judge(k, n, Rule("day"), usable=np.arange(60) >= 30).surge.any()
