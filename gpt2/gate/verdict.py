"""The gate's verdict on a model, from its report and the champion's on the same units.

It depends on the reports and their stored predictions alone, so it can be recomputed from these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2.evaluation.significance import NORMAL, holm, permutation
from gpt2.evaluation.unit_results import MODEL, UNKNOWN, UnitResults
from gpt2.gate.config import GateConfig
from gpt2.tasks.task import kind


@dataclass(frozen=True)
class Verdict:
    """The gate's decision and its reasons."""

    promote: bool
    reasons: tuple[str, ...]


def judge_by_values(report: Mapping[str, Any], champion: Mapping[str, Any] | None) -> Verdict:
    """Return the verdict by metric values alone: better than the simple baseline, not worse than the champion.

    It serves reports without per-unit results, and orders several models that have passed
    (`cluster.registry.promotion`). Where there are predictions, `judge` decides by the policy.
    """
    metric, up = report["primary"]["name"], report["primary"]["higher_is_better"]
    value, floor = report["metrics"][metric], report["baselines"][report["floor"]][metric]

    def better(a: float, b: float) -> bool:
        return a > b if up else a < b

    if not math.isfinite(value):
        return Verdict(False, (f"{metric} is {value}",))
    against_floor = f"{metric} {value:.4f} against {floor:.4f} of the baseline '{report['floor']}'"
    if not better(value, floor):
        return Verdict(False, (f"not better than the simple baseline: {against_floor}",))
    if champion is None:
        return Verdict(True, (f"better than the simple baseline: {against_floor}", "there was no champion"))
    theirs = champion["metrics"][metric]
    against_champion = f"{metric} {value:.4f} against the champion's {theirs:.4f} on the same examples"
    if better(theirs, value):
        return Verdict(False, (f"worse than the champion: {against_champion}",))
    return Verdict(
        True, (f"better than the simple baseline: {against_floor}", f"not worse than the champion: {against_champion}")
    )


CHAMPION = "champion"
SMALL = 500
"""Below this number of units a permutation test decides: the bootstrap is overconfident on few units."""
POWER = 0.8
PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True)
class Measured:
    """A model's report and its per-unit results."""

    report: Mapping[str, Any]
    unit_results: UnitResults


@dataclass(frozen=True)
class Criterion:
    """A criterion of the policy, with its outcome."""

    name: str
    passed: bool
    text: str
    figures: Mapping[str, Any]
    alternative: bool = False
    """True if it suffices that this or another alternative passes."""


def measured(report: Mapping[str, Any], folder: Path) -> Measured | None:
    """Return a report with the per-unit results of its stored predictions; None if its task has none."""
    import pandas as pd

    if not (folder / PREDICTIONS).exists():
        return None
    results = kind(report["task"]).unit_results(pd.read_parquet(folder / PREDICTIONS))
    return Measured(report, results) if results else None


def judge(candidate: Measured, champion: Measured | None, policy: GateConfig) -> dict[str, Any]:
    """Return the verdict: `promote`, `reasons` (short), `criteria` with their figures, `power`, and the `policy`.

    Raises `ValueError` if candidate and champion were measured on different units.
    """
    metric = candidate.unit_results.primary
    verdict: dict[str, Any] = {"task": candidate.report["task"], "metric": metric, "policy": policy.model_dump()}
    required = [*floors(candidate, policy), *limits(candidate, policy)]
    if champion is None:
        promote = all(c.passed for c in required)
        reasons = failures(required) or [required[0].text, "there was no champion"]
        return verdict | outcome(promote, reasons, required)
    whole = candidate.unit_results.against(champion.unit_results, CHAMPION)
    both = whole.lean()
    better = gain(both, policy)
    alternatives = [better, non_inferior(both, candidate, champion, policy), *newer(both, champion, policy)]
    required += [*slices(both, policy), *calibration(whole, policy), *forgetting(whole, policy)]
    ahead = [c.text for c in alternatives if c.passed]
    promote = bool(ahead) and all(c.passed for c in required)
    if promote:
        reasons = [required[0].text, ahead[0]]
    else:
        reasons = failures(required) + ([] if ahead else [c.text for c in (better, *alternatives[2:])])
    spread = both.drawn.deviation(both.gain(metric, CHAMPION))
    power = {"share": POWER, "gain": (NORMAL.inv_cdf(policy.probability) + NORMAL.inv_cdf(POWER)) * spread}
    return verdict | outcome(promote, reasons, [*alternatives, *required]) | {"power": power}


def outcome(promote: bool, reasons: Sequence[str], criteria: Sequence[Criterion]) -> dict[str, Any]:
    """Return the part of a verdict that the criteria decide, for JSON."""
    return {"promote": promote, "reasons": list(reasons), "criteria": [asdict(c) for c in criteria]}


def failures(criteria: Sequence[Criterion]) -> list[str]:
    """Return the texts of the criteria that failed."""
    return [c.text for c in criteria if not c.passed]


def compared(results: UnitResults, system: str, margin: float = 0.0) -> dict[str, float]:
    """Compare the primary metric with another system's.

    Returns `value`, the `other` value, and the `gain` (positive is better) with its interval `low` to `high`.
    `probability` is that of a gain above -margin (share of the other value).
    """
    metric = results.primary
    gained, theirs = results.gain(metric, system), results.value(metric, system)
    low, high = results.drawn.interval(gained)
    room = margin * abs(theirs)
    if len(results) < SMALL:
        function, sign = results.metrics[metric], 1 if results.higher_is_better else -1
        mine, other = results.systems[MODEL], results.systems[system]
        p = permutation(mine, other, lambda sums: sign * function(sums), room)
        # equal answers leave nothing to permute: a loss on a share `room` of all units may be on none of these
        probability = 1 - max(p, (1 - min(room, 1.0)) ** len(results) if room else 0.0)
    else:
        probability = results.drawn.probability(gained, -room)
    facts = {"value": results.value(metric), "other": theirs, "gain": results.drawn.value(gained)}
    return {**facts, "low": low, "high": high, "probability": probability}


def floors(candidate: Measured, policy: GateConfig) -> list[Criterion]:
    """Return a criterion for each baseline to beat: the task's simple one, and those of the policy in the report."""
    results, report = candidate.unit_results.lean(), candidate.report
    criteria = []
    for name in dict.fromkeys([report["floor"], *(n for n in policy.must_beat if n in results.systems)]):
        f = compared(results, name)
        passed = f["gain"] > 0 and f["probability"] >= policy.probability
        simple = "the simple baseline" if name == report["floor"] else "a baseline of gate.must_beat"
        word = f"better than {simple}" if passed else f"not {'surely ' * (f['gain'] > 0)}better than {simple}"
        against = f"{results.primary} {f['value']:.4f} against {f['other']:.4f} of the baseline '{name}'"
        criteria.append(Criterion(f"beats {name}", passed, f"{word}: {against}{sureness(f, passed, policy)}", f))
    return criteria


def sureness(figures: Mapping[str, float], passed: bool, policy: GateConfig) -> str:
    """Return the probability of a gain in words if the comparison failed because of it, else an empty text."""
    if passed or figures["gain"] <= 0:
        return ""
    return f" (probability {figures['probability']:.3f}, {policy.probability:g} needed)"


def limits(candidate: Measured, policy: GateConfig) -> list[Criterion]:
    """Return the criteria for size, latency and contamination."""
    cost, criteria = candidate.report.get("cost", {}), []
    for name, what, limit in (
        ("parameters", "parameters", policy.max_parameters),
        ("latency_ms", "ms for an answer", policy.max_latency_ms),
    ):
        if limit is None:
            continue
        value = cost.get(name)
        passed = value is not None and value <= limit
        text = f"the report has no {what}, so the limit of {limit:,g} can't be judged; evaluate the model again"
        if value is not None:
            text = f"{value:,g} {what}, {'within' if passed else 'over'} the limit of {limit:,g}"
        criteria.append(Criterion(f"{name} within the limit", passed, text, {"value": value, "limit": limit}))
    facts = candidate.report.get("contamination")
    if facts is None:
        text = "the report has no contamination figures; evaluate the model again"
        figures = {"value": None, "limit": policy.max_contamination}
        criteria.append(Criterion("no contamination", False, text, figures))
    elif facts["units"]:
        passed = facts["share"] <= policy.max_contamination
        text = (
            f"the training text has {len(facts['contaminated']):,} of {facts['units']:,} held-out {facts['unit']}s "
            f"({facts['share']:.2%}), {'within' if passed else 'over'} the limit of {policy.max_contamination:.2%}"
        )
        figures = {"value": facts["share"], "limit": policy.max_contamination, "by": facts["by"]}
        criteria.append(Criterion("no contamination", passed, text, figures))
    return criteria


def gain(both: UnitResults, policy: GateConfig) -> Criterion:
    """Return the criterion of being better than the champion on the primary metric."""
    f = compared(both, CHAMPION)
    passed = f["gain"] > 0 and f["probability"] >= policy.probability
    word = "better than" if passed else "worse than" if f["high"] < 0 else "not shown to be better than"
    text = (
        f"{word} the champion: {both.primary} {f['value']:.4f} against {f['other']:.4f} on the same {len(both):,} "
        f"{both.unit}s (gain {f['gain']:+.4f}, 95 % interval {f['low']:+.4f} to {f['high']:+.4f}; probability "
        f"{f['probability']:.3f}, {policy.probability:g} needed)"
    )
    return Criterion("better than the champion", passed, text, f, alternative=True)


def non_inferior(both: UnitResults, candidate: Measured, champion: Measured, policy: GateConfig) -> Criterion:
    """Return the criterion of being non-inferior to the champion within the margin, and cheaper."""
    f, level, words = within(both, policy)
    name = "parameters" if policy.cheaper_in == "parameters" else "latency_ms"
    costs = [m.report.get("cost", {}).get(name) for m in (candidate, champion)]
    cheaper = None not in costs and costs[0] <= (1 - policy.cheaper_by) * costs[1]
    price = f"{name} {costs[0]:,g} against {costs[1]:,g}" if None not in costs else f"{name} not known"
    text = f"{'' if cheaper else 'not '}cheaper than the champion ({price}) and {words}"
    figures = {**f, "cost": costs[0], "other_cost": costs[1], "cost_is": name}
    return Criterion("or not worse, and cheaper", cheaper and level, text, figures, alternative=True)


def newer(both: UnitResults, champion: Measured, policy: GateConfig) -> list[Criterion]:
    """Return the criterion of being non-inferior while knowing items that the champion can't recommend, if any."""
    unknown = champion.report.get(UNKNOWN, 0)
    if not unknown:
        return []
    f, level, words = within(both, policy)
    text = f"knows {unknown:,} items that the champion can't recommend, and {words}"
    return [Criterion("or not worse, and newer", level, text, {**f, "unknown": unknown}, alternative=True)]


def within(both: UnitResults, policy: GateConfig) -> tuple[dict[str, float], bool, str]:
    """Return (figures, whether the model is non-inferior to the champion within the margin, the same in words)."""
    f = compared(both, CHAMPION, policy.margin)
    level = f["probability"] >= policy.probability
    words = (
        f"{'' if level else 'not surely '}within {policy.margin:.0%} of it: {both.primary} {f['value']:.4f} against "
        f"{f['other']:.4f} (probability {f['probability']:.3f})"
    )
    return {**f, "margin": policy.margin}, level, words


def slices(both: UnitResults, policy: GateConfig) -> list[Criterion]:
    """Return the criterion that no slice is worse than the champion beyond the margin, with Holm's correction."""
    metric, alpha = both.slice_metric, 1 - policy.probability
    rows: list[dict[str, Any]] = []
    for name, inside in both.slices.items():
        if inside.sum() < policy.min_slice:
            continue
        part = both.part(name)
        gained, theirs = part.gain(metric, CHAMPION), part.value(metric, CHAMPION)
        drawn, bound = gained(part.drawn.sums), -policy.slice_margin * abs(theirs)
        p = (int((drawn >= bound).sum()) + 1) / (len(drawn) + 1)
        facts = {"slice": name, "units": len(part), "value": part.value(metric), "other": theirs}
        rows.append({**facts, "gain": part.drawn.value(gained), "p": p})
    if not rows:
        return []
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_adjusted"] = adjusted
    bad = [row for row in rows if row["p_adjusted"] <= alpha]
    worst = min(rows, key=lambda row: row["gain"])
    listed = ", ".join(f"'{r['slice']}' ({metric} {r['value']:.3f} against {r['other']:.3f})" for r in bad[:3])
    text = (
        f"worse than the champion by more than {policy.slice_margin:.0%} on {listed}"
        if bad
        else f"no part of {len(rows)} is worse than the champion by more than {policy.slice_margin:.0%}; the largest "
        f"loss is {worst['gain']:+.4f} on '{worst['slice']}'"
    )
    return [Criterion("no part worse", not bad, text, {"metric": metric, "slices": rows})]


def calibration(both: UnitResults, policy: GateConfig) -> list[Criterion]:
    """Return the criterion on the calibration error, if the task has one."""
    if "calibration_error" not in both.metrics:
        return []
    mine, theirs = (both.value("calibration_error", s) for s in (MODEL, CHAMPION))
    passed = mine - theirs <= policy.calibration_margin
    text = (
        f"calibration error {mine:.4f} against the champion's {theirs:.4f}, {policy.calibration_margin:g} more allowed"
    )
    return [Criterion("calibration not worse", passed, text, {"value": mine, "other": theirs})]


def forgetting(both: UnitResults, policy: GateConfig) -> list[Criterion]:
    """Return the criterion on the bits per byte of old text, if the model was refreshed."""
    name = "bits_per_byte_old"
    if name not in both.metrics:
        return []
    mine, theirs = (both.value(name, s) for s in (MODEL, CHAMPION))
    passed = mine <= (1 + policy.forgetting_margin) * theirs
    text = f"bits per byte of old text {mine:.4f} against {theirs:.4f}, {policy.forgetting_margin:.0%} more allowed"
    return [Criterion("nothing forgotten", passed, text, {"value": mine, "other": theirs})]
