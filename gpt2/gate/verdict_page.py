"""A verdict on disk: its inputs, the verdict as JSON, and a page for people; computing it again from these."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpt2.evaluation import plots, report
from gpt2.gate.config import GateConfig
from gpt2.gate.verdict import CHAMPION, PREDICTIONS, Measured, judge, measured
from gpt2.pages import html
from gpt2.pages.markdown import bullets, harmless, table

CANDIDATE, REPORT = "candidate", "report.json"
VERDICT, PAGE, PICTURE = "verdict.json", "verdict.html", "verdict.png"


def write(
    out: Path, candidate: Path, champion: Path | None, policy: GateConfig, facts: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Judge the report in the folder `candidate` against that in `champion`; return the verdict.

    The verdict, its inputs and its page are written to `out`. `facts` names the versions. Returns None if the task's
    report has no per-unit results.
    """
    for name, folder in ((CANDIDATE, candidate), (CHAMPION, champion)):
        if folder is not None:
            (out / name).mkdir(parents=True, exist_ok=True)
            for file in (REPORT, PREDICTIONS):
                if (folder / file).exists():
                    shutil.copy(folder / file, out / name / file)
    judged = judge_folder(out, policy)
    if judged is None:
        return None
    verdict = {**judged, **facts}
    (out / VERDICT).write_text(json.dumps(verdict, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (out / PAGE).write_text(page(verdict, out, candidate), "utf-8")
    return verdict


def recompute(folder: Path) -> dict[str, Any]:
    """Compute the verdict again from the predictions and the policy stored in the folder; return it.

    Raises `ValueError` if the stored verdict differs.
    """
    stored = json.loads((folder / VERDICT).read_text("utf-8"))
    judged = judge_folder(folder, GateConfig.model_validate(stored["policy"]))
    if judged is None or decision(judged) != decision(stored):
        raise ValueError(
            f"{folder / VERDICT} does not follow from the predictions beside it: one of them was altered, or an "
            f"earlier release judged by other rules; evaluate the model again"
        )
    return {**stored, **judged}


def decision(verdict: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the part of a verdict that is equal on all machines: figures only to the digits shown in the reasons."""
    passed = {c["name"]: c["passed"] for c in verdict["criteria"]}
    return verdict["promote"], list(verdict["reasons"]), passed


def judge_folder(folder: Path, policy: GateConfig) -> dict[str, Any] | None:
    """Return the verdict on the reports in the folder; None if they have no per-unit results."""
    candidate = read(folder / CANDIDATE)
    rival = read(folder / CHAMPION) if (folder / CHAMPION).exists() else None
    if candidate is None or (rival is None and (folder / CHAMPION).exists()):
        return None
    return judge(candidate, rival, policy)


def read(folder: Path) -> Measured | None:
    """Return the report in a folder with its per-unit results; None if it has none."""
    return measured(json.loads((folder / REPORT).read_text("utf-8")), folder)


def page(verdict: Mapping[str, Any], folder: Path, figures: Path) -> str:
    """Return the HTML page of the report, with the verdict first and the champion among the baselines.

    The figure of the baselines is kept in `folder`; the report's other figures lie in `figures`.
    """
    candidate = read(folder / CANDIDATE)
    assert candidate is not None
    content, results = dict(candidate.report), candidate.unit_results
    if (folder / CHAMPION).exists() and (rival := read(folder / CHAMPION)):
        results = results.against(rival.unit_results, CHAMPION)
        content["baselines"] = {CHAMPION: rival.report["metrics"], **content["baselines"]}
        both = results.summary()
        content |= {name: both[name] for name in ("intervals", "differences", "slices")}
        content["notes"] = report.notes({**content, "baselines": candidate.report["baselines"]})
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch)
        for figure in content["figures"]:
            shutil.copy(figures / figure["file"], drawn)
        metric = results.primary
        values = {name: metrics[metric] for name, metrics in content["baselines"].items()}
        intervals = {name: bounds[metric] for name, bounds in content["intervals"].items()}
        first = plots.beside_baselines(metric, content["metrics"][metric], values, drawn, intervals)
        content["figures"] = [first, *content["figures"][1:]]
        shutil.copy(drawn / first["file"], folder / PICTURE)
        return html.render("verdict.html", **report.content(content, drawn), verdict=section(verdict))


def section(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the verdict's section for the page's template."""
    criteria = []
    for criterion in verdict["criteria"]:
        name, text = with_readable_metric((criterion["name"], criterion["text"]), verdict)
        sign = mark(criterion, verdict)
        criteria.append([{"mark": sign, "kind": {"✓": "yes", "✗": "no"}.get(sign, ""), "text": name}, text])
    return {
        "promote": verdict["promote"],
        "heading": heading(verdict),
        "reasons": reason_sentences(verdict),
        "criteria_heading": CRITERIA,
        "criteria": criteria,
        "power": power(verdict),
    }


def markdown(verdict: Mapping[str, Any], picture: str = "", links: Mapping[str, str] = {}) -> str:
    """Return the verdict as Markdown for Prefect: decision, reasons, criteria with figures, and links.

    `picture` is Markdown; `links` maps texts to addresses.
    """
    lines = [f"# {heading(verdict)}", "", bullets([harmless(sentence) for sentence in reason_sentences(verdict)])]
    header = ["criterion", "this version", "beside", "gain, 95 % interval", "probability"]
    rows = [
        [f"{mark(criterion, verdict)} {criterion['name']}", *figures(criterion, verdict["metric"])]
        for criterion in verdict["criteria"]
    ]
    lines += ["", f"## {CRITERIA}", "", table(header, rows, right=True), ""]
    lines += [*(f"{sentence}\n" for sentence in power(verdict)), *([picture, ""] if picture else [])]
    return "\n".join([*lines, *(f"* [{text}]({url})" for text, url in links.items())]) + "\n"


CRITERIA = "Criteria of the gate"


def heading(verdict: Mapping[str, Any]) -> str:
    """Return the decision in a line: promoted or not, which model and version."""
    word = "Promoted" if verdict["promote"] else "Not promoted"
    return f"{word}: {verdict.get('model', verdict['task'])} version {verdict.get('version', '?')}"


def reason_sentences(verdict: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each reason, and one that names the champion, if there was one."""
    beside = [f"compared with the champion, version {verdict['champion']}"] if verdict.get("champion") else []
    return [
        f"{reason[0].upper()}{reason[1:]}." for reason in [*with_readable_metric(verdict["reasons"], verdict), *beside]
    ]


def with_readable_metric(sentences: Iterable[str], verdict: Mapping[str, Any]) -> list[str]:
    """Return the sentences with spaces instead of underscores in the metric's name."""
    metric = verdict["metric"]
    return [sentence.replace(metric, metric.replace("_", " ")) for sentence in sentences]


def mark(criterion: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    """Return the sign of a criterion: met, not met, or not needed because another alternative is met."""
    if criterion["passed"]:
        return "✓"
    enough = any(c["alternative"] and c["passed"] for c in verdict["criteria"])
    return "–" if criterion["alternative"] and enough else "✗"


def power(verdict: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the smallest gain that the comparison detects; empty if there was no comparison."""
    if not (detectable := verdict.get("power")):
        return []
    return [
        f"With this number of examples, a model that is truly better by {detectable['gain']:.4f} is found better in "
        f"{detectable['share']:.0%} of cases."
    ]


def figures(criterion: Mapping[str, Any], metric: str) -> list[str]:
    """Return a criterion's cells: this version's value, the other's or the limit, the gain, its probability.

    For slices they are those of the slice with the largest loss. For a cheaper model the gain is the costs.
    """
    facts, gain = criterion["figures"], ""
    if "slices" in facts:
        metric, facts = facts["metric"], min(facts["slices"], key=lambda part: part["gain"])
        gain = f"{facts['gain']:+.4f} on {facts['slice']}"
    elif "cost" in facts:
        gain = f"{facts['cost_is']} {shown(facts['cost'])} against {shown(facts['other_cost'])}"
    elif "low" in facts:
        gain = f"{facts['gain']:+.4f} [{facts['low']:+.4f}, {facts['high']:+.4f}]"
    value = f"{metric} {shown(facts['value'])}" if gain else shown(facts["value"])
    beside = f"at most {shown(facts['limit'])}" if "limit" in facts else shown(facts["other"])
    probability = f"{facts['probability']:.3f}" if "probability" in facts else ""
    return [value.replace("_", " "), beside, gain.replace("_", " "), probability]


def shown(value: float | None) -> str:
    """Return a figure as text."""
    return "not known" if value is None else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}"
