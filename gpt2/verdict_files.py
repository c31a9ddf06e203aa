"""A verdict on disk: what it was computed from, the verdict as JSON, and the page to decide from."""

from __future__ import annotations

import html
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2 import plots, report
from gpt2.policy import GateConfig
from gpt2.verdict import CHAMPION, PREDICTIONS, Measured, judge, measured

CANDIDATE, REPORT = "candidate", "report.json"
VERDICT, PAGE = "verdict.json", "verdict.html"


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
        raise ValueError(f"{folder / VERDICT} is not what follows from the predictions beside it")
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
    """The report's page with the verdict before all else, and the champion among the baselines."""
    candidate = read(folder / CANDIDATE)
    assert candidate is not None
    content, evidence = dict(candidate.report), candidate.evidence
    if (folder / CHAMPION).exists() and (rival := read(folder / CHAMPION)):
        evidence = evidence.against(rival.evidence, CHAMPION)
        content["baselines"] = {CHAMPION: rival.report["metrics"], **content["baselines"]}
        both = evidence.summary()
        content |= {name: both[name] for name in ("intervals", "differences", "slices")}
        content["notes"] = report.notes({**content, "baselines": candidate.report["baselines"]})
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch)
        for figure in content["figures"]:
            shutil.copy(figures / figure["file"], drawn)
        metric = evidence.primary
        values = {name: metrics[metric] for name, metrics in content["baselines"].items()}
        intervals = {name: found[metric] for name, found in content["intervals"].items()}
        first = plots.beside_baselines(metric, content["metrics"][metric], values, drawn, intervals)
        content["figures"] = [first, *content["figures"][1:]]
        return report.page(content, drawn, section(verdict))


def section(verdict: Mapping[str, Any]) -> str:
    """The verdict as HTML."""
    word = "Promoted" if verdict["promote"] else "Not promoted"
    name = f"{verdict.get('model', verdict['task'])} version {verdict.get('version', '?')}"
    beside = f"Compared with the champion, version {verdict['champion']}" if verdict.get("champion") else "The first"
    reasons = "".join(f"<p>{html.escape(reason[0].upper() + reason[1:])}.</p>" for reason in verdict["reasons"])
    enough = any(c["alternative"] and c["passed"] for c in verdict["criteria"])
    lines = []
    for criterion in verdict["criteria"]:
        mark = '<b class="yes">✓</b>' if criterion["passed"] else '<b class="no">✗</b>'
        if criterion["alternative"] and enough and not criterion["passed"]:
            mark = "–"  # the other one is met
        cells = (html.escape(criterion[part]) for part in ("name", "text"))
        lines.append(f'<tr><td>{mark} {next(cells)}</td><td class="text">{next(cells)}</td></tr>')
    power = ""
    if found := verdict.get("power"):
        power = (
            f"<p>With so many examples, a model that is truly better by {found['gain']:.4f} is found better in "
            f"{found['share']:.0%} of cases.</p>"
        )
    asked = f"<h2>What the gate asked</h2><table>{''.join(lines)}</table>{power}"
    return (
        f'<div class="{"good" if verdict["promote"] else "note"}"><h2>{word}: {html.escape(name)}</h2>'
        f"{reasons}<p>{html.escape(beside)}.</p></div>{asked}"
    )
