"""The monitor's rule for alerts beside three that people use: false alarms where the order of posts says nothing, by
volume, and how soon a doubled negative share is found. Times are made up; the sample posts have none."""

from collections import Counter, defaultdict
from functools import partial

import numpy as np
from scipy.stats import chi2, norm

from gpt2.evaluation.significance import wilson
from gpt2.monitoring.alerts import HISTORY, MIN_HISTORY, PER_YEAR, Rule, judge

OURS, SIGMA, CHART, CUSUM = "ours", "3 sigma of past shares", "p-chart", "CUSUM"
RULES = (OURS, SIGMA, CHART, CUSUM)
WINDOWS = {"day": "a day", "hour": "an hour"}
VOLUMES, NEGATIVE, SHARES = (20, 40, 100, 400), (10, 25, 40), (0.05, 0.15, 0.3, 0.45)
YEARS = {"day": 50, "hour": 4}
"""Simulated for each volume and share."""
CASES = {"day": 500, "hour": 300}
PAST = {"day": 57, "hour": 168}
"""Windows before a planted surge; by the hour fewer than the rule would use, for time."""
LASTS = 10
"""Windows of a planted surge."""
SPREAD, SHUFFLES = {"day": 60, "hour": 168}, 60
"""Windows over which the sample posts are shuffled, and how often."""


def run() -> None:
    generator = np.random.default_rng(0)
    truth, read, topics = sample_posts()
    print(f"| false alarms [95 %] | topic-years | {' | '.join(RULES)} |\n|---|---|---|---|---|---|")
    for name, labels in (("labels", truth), ("labels as read", read)):
        for window, windows in SPREAD.items():
            streams = (
                counted(labels[mine], generator.integers(0, windows, len(mine)), windows)
                for mine in topics.values()
                for _ in range(SHUFFLES)
            )
            alarms(f"sample posts' {name}, {windows} {window}s, {len(topics)} topics", window, streams)
    for window, a_window in WINDOWS.items():
        year = PER_YEAR[window]
        for posts in VOLUMES:
            streams = (shuffled(generator, year, posts, share) for share in SHARES for _ in range(YEARS[window]))
            alarms(f"made up, {posts} posts {a_window}", window, streams)
        for name, shares in MOVING.items():
            streams = (drawn(generator, 100, shares(generator, window, year)) for _ in range(2 * YEARS[window]))
            alarms(f"100 posts {a_window}, {name}", window, streams)

    print(f"\n| doublings, in a usual window | found within two [95 %] | seen in | {' | '.join(RULES[1:])} |")
    print("|---|---|---|---|---|---|")
    for window, a_window in WINDOWS.items():
        for negative in NEGATIVE:
            for share in SHARES:
                name = f"{negative} negative of {negative / share:,.0f} posts {a_window} ({share:.0%})"
                doublings(name, window, partial(made_up, generator, PAST[window], negative, share))
        least = MIN_HISTORY[window] + 1
        doublings(f"40 of 267, only {least} {window}s before", window, partial(made_up, generator, least, 40, 0.15))
        doublings(f"30 of 100, {VARYING}", window, partial(varied, generator, PAST[window]))

    print("\n| topic, a day | in labels: found within two | as read: found within two | as read, before and in it |")
    print("|---|---|---|---|")
    for topic, mine in topics.items():
        if truth[mine].mean() < 0.5:
            in_topic(topic, truth[mine], read[mine], generator)


def sample_posts():
    """(negative by label, negative as a model reads it that has not seen the post, places of large topics' posts)."""
    from sklearn.metrics import f1_score

    from gpt2.data.text import topics_of
    from gpt2.tasks.sentiment.report import tfidf_logistic_regression
    from tests.benchmarks.base import posts

    texts, labels, names = posts()
    half, found = np.arange(len(texts)) % 2 == 0, np.zeros(len(texts), int)
    for test in (half, ~half):
        learned, asked = ([texts[i] for i in np.flatnonzero(mine)] for mine in (~test, test))
        found[test] = tfidf_logistic_regression(learned, labels[~test], asked, len(names)).argmax(1)
    places = defaultdict(list)
    for number, text in enumerate(texts):
        for topic in topics_of(text):
            places[topic].append(number)
    large = {t: np.array(p) for t, p in places.items() if len(p) >= 15 * SPREAD["day"]}
    print(f"as read: by TF-IDF + logistic regression, macro-F1 {f1_score(labels, found, average='macro'):.3f}\n")
    negative = names.index("negative")
    return labels == negative, found == negative, {"all posts": np.arange(len(texts)), **large}


def counted(negative: np.ndarray, when: np.ndarray, windows: int) -> tuple[np.ndarray, np.ndarray]:
    """(negative, posts) of each window."""
    return np.bincount(when, negative, windows), np.bincount(when, minlength=windows).astype(float)


def sizes(generator: np.random.Generator, windows: int, posts: float) -> np.ndarray:
    """Posts of windows of uneven size: the standard deviation is half the mean, and chance."""
    return generator.poisson(posts * generator.gamma(4, 0.25, windows))


def shuffled(generator: np.random.Generator, windows: int, posts: float, share: float):
    """Labels in an order that says nothing."""
    n = sizes(generator, windows, posts)
    labels = np.arange(n.sum()) < round(share * n.sum())
    return counted(generator.permutation(labels), np.repeat(np.arange(windows), n), windows)


def drawn(generator: np.random.Generator, posts: float, shares: np.ndarray):
    """Windows whose posts are negative with these (windows,) probabilities."""
    n = sizes(generator, len(shares), posts)
    return generator.binomial(n, shares), n


def made_up(generator: np.random.Generator, past: int, negative: float, share: float):
    """A topic whose share doubles in its last windows."""
    return drawn(generator, negative / share, share * (1 + (np.arange(past + LASTS) >= past)))


def varied(generator: np.random.Generator, past: int):
    """The same of a topic whose share varies by itself."""
    shares = generator.beta(18, 42, past + LASTS) * (1 + (np.arange(past + LASTS) >= past))
    return drawn(generator, 100, np.minimum(shares, 1))


VARYING = "30 % negative ± 6 points by itself"
MOVING = {
    VARYING: lambda generator, window, year: generator.beta(18, 42, year),
    "30 % and a third more at the peak of each week or, by hour, day": lambda generator, window, year: (
        0.3 + 0.1 * np.sin(2 * np.pi * np.arange(year) / {"day": 7, "hour": 24}[window])
    ),
    "rising from 20 to 40 % within the year": lambda generator, window, year: np.linspace(0.2, 0.4, year),
}
"""Where more than chance is at work: the share by window."""


def flags(k: np.ndarray, n: np.ndarray, window: str) -> dict[str, np.ndarray]:
    """Which windows each rule marks; the peers judge with the same history and the same least number of posts."""
    rule = Rule(window)

    def before(values: np.ndarray) -> np.ndarray:
        total = np.r_[0.0, np.cumsum(values)]
        ends = np.maximum(np.arange(len(values)) - 1, 0)
        return total[ends] - total[np.maximum(ends - HISTORY[window], 0)]

    large = n >= rule.min_posts
    share = np.where(large, k / np.maximum(n, 1), 0)
    count = np.maximum(before(large), 1)
    judged = large & (before(n > 0) >= MIN_HISTORY[window])
    mean = before(share) / count
    spread = np.sqrt(np.maximum(before(share**2) / count - mean**2, 0))
    usual = (before(k) + 0.5) / (before(n) + 1)
    z = np.where(judged, (share - usual) / np.sqrt(usual * (1 - usual) / np.maximum(n, 1)), 0)
    summed, crossed = 0.0, np.zeros(len(n), bool)
    for i in np.flatnonzero(judged):
        summed = max(0.0, summed + z[i] - 0.5)
        if summed > 5:
            summed, crossed[i] = 0.0, True
    sigma = judged & (before(large) > 1) & (share > mean + 3 * spread)
    limit = norm.isf(rule.false_alarms / PER_YEAR[window])
    return {OURS: judge(k, n, rule).surge, SIGMA: sigma, CHART: z > limit, CUSUM: crossed}


def alarms(name: str, window: str, streams) -> None:
    """A row: alarms per year of windows that ours judges; marked windows in a row are one."""
    found, judged = Counter(), 0
    for k, n in streams:
        judged += (~np.isnan(judge(k, n, Rule(window)).p_value)).sum()
        for rule, marked in flags(k, n, window).items():
            found[rule] += (marked & ~np.r_[False, marked[:-1]]).sum()
    years = judged / PER_YEAR[window]
    print(f"| {name} | {years:,.0f} | {' | '.join(rate(found[rule], years) for rule in RULES)} |", flush=True)


def rate(count: int, years: float) -> str:
    """With the interval of a Poisson mean (Garwood 1936)."""
    low = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    return f"{count / years:.2f} [{low / years:.2f}, {chi2.ppf(0.975, 2 * count + 2) / 2 / years:.2f}]"


def doublings(name: str, window: str, case) -> None:
    """A row: ours with its interval, the mean window in which a surge is seen (of those that are), and the peers."""
    first = defaultdict(list)
    for _ in range(CASES[window]):
        for rule, marked in flags(*case(), window).items():
            first[rule].append(np.argmax(np.r_[marked[-LASTS:], True]) + 1)
    soon = {rule: np.array(first[rule]) <= 2 for rule in RULES}
    seen = [when for when in first[OURS] if when <= LASTS]
    peers = " | ".join(f"{soon[rule].mean():.3f}" for rule in RULES[1:])
    print(f"| {name} | {shown(soon[OURS])} | {np.mean(seen) if seen else np.nan:.2f} | {peers} |", flush=True)


def shown(found: np.ndarray) -> str:
    """A share with its interval."""
    low, high = wilson(np.array([found.sum()]), np.array([len(found)]))
    return f"{found.mean():.3f} [{low[0]:.3f}, {high[0]:.3f}]"


def in_topic(topic: str, truth: np.ndarray, read: np.ndarray, generator: np.random.Generator) -> None:
    """A row: on the last two days posts change places with others of the same topic, as `gpt2.monitoring.demo` plants a
    surge, until twice the usual share of them is labelled negative."""
    days, found, shares = SPREAD["day"], {"truth": [], "read": []}, []
    for _ in range(2 * SHUFFLES):
        when = generator.integers(0, days, len(truth))
        late = when >= days - 2
        leave, come = np.flatnonzero(late & ~truth), np.flatnonzero(~late & truth)
        count = min(round(2 * truth.mean() * late.sum()) - truth[late].sum(), len(leave), len(come))
        leave, come = (generator.permutation(places)[: max(count, 0)] for places in (leave, come))
        when[leave], when[come] = when[come], when[leave]
        for name, labels in (("truth", truth), ("read", read)):
            found[name].append(judge(*counted(labels, when, days), Rule("day")).surge[-2:].any())
        shares.append((read[when < days - 2].mean(), read[when >= days - 2].mean()))
    before, after = np.mean(shares, 0)
    cells = f"{shown(np.array(found['truth']))} | {shown(np.array(found['read']))} | {before:.0%}, {after:.0%}"
    print(f"| {topic}: {truth.mean():.0%} of {len(truth) / days:,.0f} posts | {cells} |", flush=True)
