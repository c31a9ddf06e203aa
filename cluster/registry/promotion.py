"""Choose the champion among the versions of a model: by the gate, by an operator, and by rollback.

MLflow has no transactions over several requests and no compare-and-set. A file lock does not reach clients on other
machines, and a lease in tags can expire while its holder sleeps. So nothing here relies on a lock:

*The champion has always been promoted.* A promoter adds the tag `gpt2.promoted` to a version, and nobody ever removes
it; refusals have their own tag. The alias moves in one request, which is made only after the tag is written. So the
alias is always on a version with the tag, whatever the order of the promoters' requests and whichever of them is
killed. The gate passed that version, or an operator forced it, which a further tag records.

*Each version records its predecessors.* The tag `gpt2.replaced`, written before the alias moves, lists the champion
that the version replaces, and the champions before it. All of them were promoted. A rollback goes to the first that was
not rolled back itself. The alias `previous` repeats this for readers. Whoever moves the champion sets it again until
the champion has not changed meanwhile.

*The best of simultaneous promotions stays.* Two versions may pass the gate against the same champion. After its move,
each promoter compares its version with all promoted versions that were not champions before it. It moves the alias to a
better one until there is none. Tags are written before moves, so the last to move sees all the others.

*A copy to another registry is an operator's promotion there.* Its evidence and its files are read back before the
version is made, in one request, and the alias moves last. Killed anywhere, it is repeated and goes on.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cluster.home import tracking_uri
from cluster.registry import download, versions
from cluster.registry.download import ABSENT, exact
from cluster.registry.local import ADDRESS, verdict_of
from cluster.registry.versions import ARTIFACT_TAG, CHAMPION, PREVIOUS, by_alias
from cluster.tracking.runs import NOTE, PROCESS, SQLITE, Run, client, connected_to, this_process
from gpt2.gate.verdict import Verdict, judge_by_values
from gpt2.loading import read
from gpt2.store.artifact import Artifact, digest, file_sha256
from gpt2.store.model_files import RefusedModel, manifest
from gpt2.tasks.task import kind

PROMOTED, PROMOTED_AT, REPLACED = "gpt2.promoted", "gpt2.promoted_at", "gpt2.replaced"
REFUSED, FORCED, ROLLED_BACK = "gpt2.refused", "gpt2.forced", "gpt2.rolled_back"

Report = Mapping[str, Any]


def decide(
    name: str,
    version: ModelVersion,
    measure: Callable[[ModelVersion], Report],
    judge: Callable[[Report, Report | None], Verdict] = judge_by_values,
) -> Verdict:
    """Let the gate judge a version, and record its verdict with the version. A version that passes becomes the
    champion.

    `measure` returns a version's report, on the same examples for each version. `judge` compares it with the
    champion's. Several that pass at the same time are compared by their values alone, which is an order, so the
    comparison ends.
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
    """Return a version promoted at the same time as this one that this one would not beat; None if there is none."""
    version = client().get_model_version(version.name, version.version)
    known = {str(version.version), *replaced(version)}
    for other in client().search_model_versions(f"name = '{version.name}'"):
        moved = {PROMOTED, PROMOTED_AT} <= other.tags.keys()  # a copy may bring the verdict alone
        beside = moved and ROLLED_BACK not in other.tags and str(other.version) not in known
        if beside and not judge_by_values(measure(version), measure(other)).promote:
            return other
    return None


def replaced(version: ModelVersion) -> list[str]:
    """Return the numbers of the champions before this version, the latest first."""
    return [number for number in version.tags.get(REPLACED, "").split(",") if number]


def promote(name: str, number: str, reason: str = "", force: bool = False) -> ModelVersion:
    """Make a version the champion for an operator; return the version that it replaces, or itself if it is the
    champion.

    Raises `ValueError` if the gate refused or has not judged it, unless forced with a reason, and for damaged files.
    """
    version = download.find(f"models:/{name}/{number}")
    download.inspect(version)
    state = verdict_of(version)
    if force and not reason:
        raise ValueError("--force: needs a reason, which is kept with the version; add --reason WHY")
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
    """Roll the champion back to the version that it replaced; return (from, to).

    Skips versions that were rolled back before, were deleted, or lack files. Raises `ValueError` if none is left.
    """
    champion = by_alias(name, CHAMPION)
    if champion is None:
        raise ValueError(f"{name} has no champion; `gpt2 models` lists the models")
    target, passed_over = before(champion, check_files=True)
    if target is None:
        why = "; ".join(passed_over) or "it was the first"
        raise ValueError(f"{name} version {champion.version} has no champion before it to go back to: {why}")
    tag(champion, ROLLED_BACK, stamped(reason or "no reason given"))
    point(name, CHAMPION, target)
    settle_previous(name)
    return champion, target


def before(champion: ModelVersion, check_files: bool = False) -> tuple[ModelVersion | None, list[str]]:
    """Return (the version that a rollback goes to, or None; why others were passed over)."""
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
    """Make the version the champion. The order of the requests matters; see the module's docstring."""
    if champion:
        earlier = dict.fromkeys([str(champion.version), *replaced(champion)])
        tag(version, REPLACED, ",".join(number for number in earlier if number != str(version.version)))
    tag(version, PROMOTED_AT, stamped())
    tag(version, PROMOTED, reasons)
    point(version.name, CHAMPION, version)


def settle_previous(name: str) -> None:
    """Set the alias `previous` to the version that a rollback of the champion goes to."""
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
    """Set an alias. Retries, because MLflow fails one of two clients that insert the same alias at the same time."""
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


COPIED_FROM = "gpt2.copied_from"
"""The tag of a copy: the version that it was copied from, and that version's registry."""
PARENT_VERSION = "gpt2.parent_version"
OF_THE_REGISTRY = (REPLACED, PROMOTED_AT, PARENT_VERSION)
"""Tags that a copy does not bring: they are on other versions of its registry, or on its alias."""


def copy(address: str, to: str) -> tuple[ModelVersion, bool]:
    """Copy a version with its verdict, card and evidence to the MLflow at `to`, and move the address's alias there.

    Returns (the version there, whether it is new). A version there that has the same files is not made again. Raises
    `ValueError` for an address of no use, and if the gate of the other registry refused the model.
    """
    there = registry(to)
    version = download.find(address)
    folder = download.pull_version(version)
    origin = f"{exact(version)} of {public(tracking_uri())}"
    with tempfile.TemporaryDirectory() as scratch:
        evidence = Path(scratch)
        made_by = client().get_run(version.run_id) if version.run_id else None
        if made_by and client().list_artifacts(version.run_id):
            client().download_artifacts(version.run_id, "", scratch)
        with connected_to(there):
            copied = versions.by_files(version.name, manifest(folder))
            new = copied is None
            if copied is None:
                copied = arrive(version, folder, origin, made_by, evidence)
            elif not versions.judged(copied):
                for key, value in carried(version).items():
                    tag(copied, key, value)
            if version.description and not copied.description:
                own = re.sub(rf"{exact(version)}\b", exact(copied), version.description)
                versions.describe(copied.name, copied, own)
            parts = ADDRESS.fullmatch(address)
            alias = parts["alias"] if parts else None
            if alias == CHAMPION:
                promote(copied.name, copied.version, f"copied from {origin}")
            elif alias and alias != PREVIOUS:
                point(copied.name, alias, copied)
            return download.find(exact(copied)), new


def arrive(version: ModelVersion, folder: Path, origin: str, made_by: Any, evidence: Path) -> ModelVersion:
    """Register the model in `folder` as a new version here, after the run that made it with its files (`evidence`)."""
    task, predictor = read(folder)
    params = getattr(predictor, "params", kind(task).params)
    example = list(predictor.input_example)
    artifact = Artifact(folder.parent, {"id": version.tags[ARTIFACT_TAG], "kind": task})
    champion = by_alias(version.name, CHAMPION)
    tags = {**carried(version), COPIED_FROM: origin, PARENT_VERSION: str(champion.version) if champion else "none"}
    identity = {"gpt2.copy": digest([origin, version.creation_timestamp])[:32], PROCESS: this_process()}
    run = Run.open(made_by.info.run_name if made_by else f"copy-{version.name}", identity)
    try:
        if made_by:
            send(made_by, evidence, run)
        copied = versions.add(version.name, artifact, run, tags, example, params, predictor.predict(example, params))
    except BaseException as error:
        run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.tag({COPIED_FROM: origin})
    if made_by:  # last: by these tags a stage finds its unfinished run
        kept = {key: value for key, value in made_by.data.tags.items() if not key.startswith("mlflow.") or key == NOTE}
        run.tag({key: value for key, value in kept.items() if key != PROCESS})
    run.end()
    return copied


def send(made_by: Any, evidence: Path, run: Run) -> None:
    """Copy another registry's run and its files to `run`; raises `RefusedModel` if they arrive altered."""
    run.params(made_by.data.params)
    run.metrics(made_by.data.metrics)
    if datasets := made_by.inputs.dataset_inputs:
        client().log_inputs(run.id, datasets)
    sent = hashes(evidence)
    if not sent:
        return
    run.files(evidence)
    with tempfile.TemporaryDirectory() as scratch:
        client().download_artifacts(run.id, "", scratch)
        arrived = hashes(Path(scratch))
    if damaged := [name for name in sent if arrived.get(name) != sent[name]]:
        raise RefusedModel(f"{damaged[0]} of the evidence arrived altered; copy it again")


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file in a folder, by its path in it."""
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


def carried(version: ModelVersion) -> dict[str, str]:
    """Return the tags that a version keeps in another registry."""
    return {key: value for key, value in version.tags.items() if key not in OF_THE_REGISTRY}


def registry(to: str) -> str:
    """Return MLflow's address of what a user named: a server, a SQLite file, or the folder of another home."""
    if "://" not in to:
        folder = Path(to).resolve()
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--to {to}: is a file; give a home's folder, sqlite:///FILE or the address of a server")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        to = f"{SQLITE}{folder / 'mlflow' / 'mlflow.db'}"
    elif to.startswith(SQLITE):
        file = Path(to.removeprefix(SQLITE)).resolve()
        if not file.parent.is_dir() or (file.exists() and file.open("rb").read(6) not in (b"", b"SQLite")):
            raise ValueError(f"--to {to}: is no SQLite file, and none can be made there; give sqlite:///FILE")
        to = f"{SQLITE}{file}"
    elif urlsplit(to).scheme not in ("http", "https"):
        raise ValueError(f"--to {public(to)}: give http(s)://HOST:PORT, sqlite:///FILE, or the folder of another home")
    if to.rstrip("/") == tracking_uri().rstrip("/"):
        raise ValueError(f"--to {public(to)}: is the registry that the model is in; give another one")
    return to


def public(uri: str) -> str:
    """Return an address without its login."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else uri
