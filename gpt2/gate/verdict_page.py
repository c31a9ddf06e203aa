"""A verdict on disk: what it was computed from, the verdict as JSON, and the page to decide from."""

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
    """The verdict on the report in the folder `candidate`, beside that in `champion`; written to `out` with all that it
    follows from. `facts` says whose they are. None where the task's report tells nothing of each unit."""
    for name, folder in ((CANDIDATE, candidate), (CHAMPION, champion)):
        if folder is not None:
            (out / name).mkdir(parents=True, exist_ok=True)
            for file in (REPORT, PREDICTIONS):
                if (folder / file).exists():
                    shutil.copy(folder / file, out / name / file)
    found = of(out, policy)
    if found is None:
        return None
    verdict = {**found, **facts}
    (out / VERDICT).write_text(json.dumps(verdict, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (out / PAGE).write_text(page(verdict, out, candidate), "utf-8")
    return verdict


def recompute(folder: Path) -> dict[str, Any]:
    """The verdict again, from the predictions and the policy that are stored in the folder.

    `ValueError` where the stored one says otherwise.
    """
    stored = json.loads((folder / VERDICT).read_text("utf-8"))
    found = of(folder, GateConfig.model_validate(stored["policy"]))
    if found is None or decided(found) != decided(stored):
        raise ValueError(
            f"{folder / VERDICT} is not what follows from the predictions beside it: one of them was altered, or an "
            f"earlier release judged by other rules"
        )
    return {**stored, **found}


def decided(verdict: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must be the same on any machine: figures to the digits that the reasons show."""
    passed = {c["name"]: c["passed"] for c in verdict["criteria"]}
    return verdict["promote"], list(verdict["reasons"]), passed


def of(folder: Path, policy: GateConfig) -> dict[str, Any] | None:
    """The verdict on the reports that lie in the folder."""
    candidate = read(folder / CANDIDATE)
    rival = read(folder / CHAMPION) if (folder / CHAMPION).exists() else None
    if candidate is None or (rival is None and (folder / CHAMPION).exists()):
        return None
    return judge(candidate, rival, policy)


def read(folder: Path) -> Measured | None:
    return measured(json.loads((folder / REPORT).read_text("utf-8")), folder)


def page(verdict: Mapping[str, Any], folder: Path, figures: Path) -> str:
    """The report's page with the verdict before all else, and the champion among the baselines; the picture of these
    stays in the folder."""
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
        intervals = {name: found[metric] for name, found in content["intervals"].items()}
        first = plots.beside_baselines(metric, content["metrics"][metric], values, drawn, intervals)
        content["figures"] = [first, *content["figures"][1:]]
        shutil.copy(drawn / first["file"], folder / PICTURE)
        return html.render("verdict.html", **report.content(content, drawn), verdict=section(verdict))


def section(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of the verdict, for its template."""
    criteria = []
    for criterion in verdict["criteria"]:
        name, text = told((criterion["name"], criterion["text"]), verdict)
        sign = mark(criterion, verdict)
        criteria.append([{"mark": sign, "kind": {"✓": "yes", "✗": "no"}.get(sign, ""), "text": name}, text])
    return {
        "promote": verdict["promote"],
        "heading": heading(verdict),
        "reasons": because(verdict),
        "asked": ASKED,
        "criteria": criteria,
        "power": power(verdict),
    }


def markdown(verdict: Mapping[str, Any], picture: str = "", links: Mapping[str, str] = {}) -> str:
    """The verdict for Prefect: the decision and why, what was asked with its figures, a picture that is Markdown, and
    links {text: address}."""
    lines = [f"# {heading(verdict)}", "", bullets([harmless(sentence) for sentence in because(verdict)])]
    header = ["criterion", "this version", "beside", "gain, 95 % interval", "probability"]
    rows = [
        [f"{mark(criterion, verdict)} {criterion['name']}", *figures(criterion, verdict["metric"])]
        for criterion in verdict["criteria"]
    ]
    lines += ["", f"## {ASKED}", "", table(header, rows, right=True), ""]
    lines += [*(f"{sentence}\n" for sentence in power(verdict)), *([picture, ""] if picture else [])]
    return "\n".join([*lines, *(f"* [{text}]({url})" for text, url in links.items())]) + "\n"


ASKED = "What the gate asked"


def heading(verdict: Mapping[str, Any]) -> str:
    word = "Promoted" if verdict["promote"] else "Not promoted"
    return f"{word}: {verdict.get('model', verdict['task'])} version {verdict.get('version', '?')}"


def because(verdict: Mapping[str, Any]) -> list[str]:
    """Sentences: each reason, and whom it was compared with, if anyone."""
    beside = [f"compared with the champion, version {verdict['champion']}"] if verdict.get("champion") else []
    return [f"{reason[0].upper()}{reason[1:]}." for reason in [*told(verdict["reasons"], verdict), *beside]]


def told(sentences: Iterable[str], verdict: Mapping[str, Any]) -> list[str]:
    """With the metric's name as people write it."""
    metric = verdict["metric"]
    return [sentence.replace(metric, metric.replace("_", " ")) for sentence in sentences]


def mark(criterion: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    """Met, not met, or not needed: of alternatives another one is met."""
    if criterion["passed"]:
        return "✓"
    enough = any(c["alternative"] and c["passed"] for c in verdict["criteria"])
    return "–" if criterion["alternative"] and enough else "✗"


def power(verdict: Mapping[str, Any]) -> list[str]:
    """A sentence on how small a gain such a comparison finds, where there was one."""
    if not (found := verdict.get("power")):
        return []
    return [
        f"With so many examples, a model that is truly better by {found['gain']:.4f} is found better in "
        f"{found['share']:.0%} of cases."
    ]


def figures(criterion: Mapping[str, Any], metric: str) -> list[str]:
    """A criterion's cells: this version's value, the other's or the limit, the gain, its probability.

    Of parts of the examples, those of the one with the largest loss; of a cheaper model, the costs for the gain.
    """
    found, gain = criterion["figures"], ""
    if "slices" in found:
        metric, found = found["metric"], min(found["slices"], key=lambda part: part["gain"])
        gain = f"{found['gain']:+.4f} on {found['slice']}"
    elif "cost" in found:
        gain = f"{found['cost_is']} {shown(found['cost'])} against {shown(found['other_cost'])}"
    elif "low" in found:
        gain = f"{found['gain']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
    value = f"{metric} {shown(found['value'])}" if gain else shown(found["value"])
    beside = f"at most {shown(found['limit'])}" if "limit" in found else shown(found["other"])
    probability = f"{found['probability']:.3f}" if "probability" in found else ""
    return [value.replace("_", " "), beside, gain.replace("_", " "), probability]


def shown(value: float | None) -> str:
    """A figure for people."""
    return "not known" if value is None else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}"
