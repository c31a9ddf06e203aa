"""Which version is the champion: the gate's decisions, an operator's, and the way back.

MLflow has no transactions over several requests and no compare-and-set, a file lock is no lock for a server's clients,
and a lease kept in tags can be lost while its holder sleeps. So nothing here relies on a lock:

*The champion has always been promoted.* The tag `gpt2.promoted` is only ever added to a version, by whoever promotes
it, and never removed; refusals are told in a tag of their own. The alias moves in one request, and that request is made
for a version only after its tag is written. So at any moment, in any order of any number of promoters' requests, and
whoever of them is killed, the alias is on a version with the tag: one that the gate passed, or that an operator forced,
which a further tag tells.

*The way back is on the version itself.* `gpt2.replaced`, written before the alias moves, lists the champion that the
version takes the place of, read off the alias, and the champions before that: so all of them were promoted. A rollback
goes to the first that was not rolled back itself. The alias `previous` repeats this for readers; whoever moves the
champion sets it until the champion has not changed meanwhile.

*Of several at once the best stays.* Two may pass the gate against the same champion. Each, after its move, compares
what it made champion with all promoted versions that were no champions before that one, and moves on to one that is
better, until there is none. Tags are written before moves: the last to move sees all the others.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cluster.registry import download
from cluster.registry.download import ABSENT
from cluster.registry.versions import CHAMPION, PREVIOUS, by_alias, verdict_of
from cluster.tracking.runs import client
from gpt2.gate.verdict import Verdict, judge_by_values
from gpt2.store.model_files import RefusedModel

PROMOTED, PROMOTED_AT, REPLACED = "gpt2.promoted", "gpt2.promoted_at", "gpt2.replaced"
REFUSED, FORCED, ROLLED_BACK = "gpt2.refused", "gpt2.forced", "gpt2.rolled_back"

Report = Mapping[str, Any]


def decide(
    name: str,
    version: ModelVersion,
    measure: Callable[[ModelVersion], Report],
    judge: Callable[[Report, Report | None], Verdict] = judge_by_values,
) -> Verdict:
    """The gate's decision on a version, recorded with it; a version that passes becomes the champion.

    `measure` gives a version's report, the same examples for each; `judge` decides on it beside the champion's. Which
    of several that passed at once is best, their values alone say: that is an order, and ends.
    """
    champion = by_alias(name, CHAMPION)
    rival = champion if champion and champion.version != version.version else None
    verdict = judge(measure(version), measure(rival) if rival else None)
    if not verdict.promote:
        tag(version, REFUSED, "; ".join(verdict.reasons))
        return verdict
    move(version, champion, "; ".join(verdict.reasons))
    while better := better_than(version, measure):
        point(name, CHAMPION, better)
        version = better
    settle_previous(name)
    return verdict


def better_than(version: ModelVersion, measure: Callable[[ModelVersion], Report]) -> ModelVersion | None:
    """A version, promoted beside this one and not before it, that the gate would not let this one replace."""
    version = client().get_model_version(version.name, version.version)
    known = {str(version.version), *replaced(version)}
    for other in client().search_model_versions(f"name = '{version.name}'"):
        beside = PROMOTED in other.tags and ROLLED_BACK not in other.tags and str(other.version) not in known
        if beside and not judge_by_values(measure(version), measure(other)).promote:
            return other
    return None


def replaced(version: ModelVersion) -> list[str]:
    """The versions that were champions before this one, the latest first."""
    return [number for number in version.tags.get(REPLACED, "").split(",") if number]


def promote(name: str, number: str, reason: str = "", force: bool = False) -> ModelVersion:
    """An operator makes a version the champion; returns the one that it replaces, or itself where it was champion.

    `ValueError` for one that the gate refused or has not judged, unless forced with a reason, and for damaged files.
    """
    version = download.find(f"models:/{name}/{number}")
    download.inspect(version)
    state = verdict_of(version)
    if force and not reason:
        raise ValueError("--force needs --reason, which is kept with the version")
    if state != "promoted" and not force:
        why = version.tags.get(REFUSED, "the gate has not judged it: `gpt2 run register` does")
        raise ValueError(f"{name} version {number} was not promoted: {why}; to promote it anyway: --force --reason WHY")
    champion = by_alias(name, CHAMPION)
    if champion and champion.version == version.version:
        return version
    if state != "promoted":
        tag(version, FORCED, stamped(reason))
    if ROLLED_BACK in version.tags:
        client().delete_model_version_tag(name, version.version, ROLLED_BACK)
    cause = f"by an operator{': ' + reason if reason else ''}"
    move(version, champion, f"{version.tags[PROMOTED]}; {cause}" if PROMOTED in version.tags else f"forced {cause}")
    settle_previous(name)
    return champion or version


def rollback(name: str, reason: str = "") -> tuple[ModelVersion, ModelVersion]:
    """The champion goes back to the one that it replaced; returns (from, to).

    Passes over versions that were rolled back before, deleted, or whose files are not all there. `ValueError` where
    there is none to go back to.
    """
    champion = by_alias(name, CHAMPION)
    if champion is None:
        raise ValueError(f"{name} has no champion; `gpt2 models` lists what there is")
    target, passed_over = before(champion, check_files=True)
    if target is None:
        why = "; ".join(passed_over) or "it was the first"
        raise ValueError(f"{name} version {champion.version} has no champion before it to go back to: {why}")
    tag(champion, ROLLED_BACK, stamped(reason or "no reason given"))
    point(name, CHAMPION, target)
    settle_previous(name)
    return champion, target


def before(champion: ModelVersion, check_files: bool = False) -> tuple[ModelVersion | None, list[str]]:
    """(the version that a rollback goes to, why others were passed over)."""
    passed_over: list[str] = []
    for number in replaced(champion):
        try:
            version = client().get_model_version(champion.name, number)
            if check_files:
                download.inspect(version)
        except RefusedModel as error:
            passed_over.append(str(error))
            continue
        except MlflowException as error:
            if error.error_code not in ABSENT:
                raise
            passed_over.append(f"version {number} was deleted")
            continue
        if ROLLED_BACK not in version.tags:
            return version, passed_over
        passed_over.append(f"version {number} was rolled back itself")
    return None, passed_over


def move(version: ModelVersion, champion: ModelVersion | None, reasons: str) -> None:
    """Make the version champion. The order of the requests is what the module's first lines argue from."""
    if champion:
        earlier = dict.fromkeys([str(champion.version), *replaced(champion)])
        tag(version, REPLACED, ",".join(number for number in earlier if number != str(version.version)))
    tag(version, PROMOTED_AT, stamped())
    tag(version, PROMOTED, reasons)
    point(version.name, CHAMPION, version)


def settle_previous(name: str) -> None:
    """Set the alias `previous` to what the champion would be rolled back to."""
    while champion := by_alias(name, CHAMPION):
        target, _ = before(champion)
        if target:
            point(name, PREVIOUS, target)
        else:
            with contextlib.suppress(MlflowException):  # there was none
                client().delete_registered_model_alias(name, PREVIOUS)
        now = by_alias(name, CHAMPION)
        if now and now.version == champion.version:
            return


def point(name: str, alias: str, version: ModelVersion) -> None:
    """Set an alias. MLflow inserts or updates: of two who insert the same at once, one is told to try again."""
    for wait in (0.1, 0.5, None):
        try:
            client().set_registered_model_alias(name, alias, version.version)
            return
        except MlflowException:
            if wait is None:
                raise
            time.sleep(wait)


def tag(version: ModelVersion, key: str, value: str) -> None:
    client().set_model_version_tag(version.name, version.version, key, value)


def stamped(text: str = "") -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}".strip()
