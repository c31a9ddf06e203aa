"""Register and list MLflow model versions.

Files are uploaded first and read back. Then one request makes the version with its source and its tags, which include
the manifest of its files. So a version is complete, or was damaged later, which its download detects.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import logging
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

from cluster.registry.download import ABSENT, expected_files, find, inspect, scratch_folder, source, take
from cluster.registry.local import ADDRESS, MANIFEST_TAG, Version, verdict_of
from cluster.tracking.runs import Run, client, experiment_id
from gpt2.store.artifact import Artifact
from gpt2.store.model_files import Manifest, RefusedModel, manifest

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
ARTIFACT_TAG = "gpt2.artifact"
REQUIREMENTS = (
    "torch", "tiktoken", "tokenizers", "safetensors", "numpy", "pandas", "pydantic", "pyarrow", "scikit-learn", "scipy"
)  # fmt: skip


def by_alias(name: str, alias: str) -> ModelVersion | None:
    """Return the version that an alias points at, or None."""
    try:
        return client().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ABSENT:
            return None
        raise  # the server does not answer, which does not mean that there is no champion


def by_artifact(name: str, artifact_id: str) -> ModelVersion | None:
    """Return the latest version made from an artifact, or None. Versions without a manifest don't count."""
    matching = client().search_model_versions(f"name = '{name}' and tags.`{ARTIFACT_TAG}` = '{artifact_id}'")
    matching = [v for v in matching if MANIFEST_TAG in v.tags]
    return max(matching, key=lambda v: int(v.version)) if matching else None


def by_files(name: str, files: Manifest) -> ModelVersion | None:
    """Return the latest version with exactly these files, which are read and verified; None if there is none."""
    known = client().search_model_versions(f"name = '{name}'")
    for version in sorted(known, key=lambda v: -int(v.version)):
        with contextlib.suppress(RefusedModel), scratch_folder() as scratch:
            if expected_files(version) == files:
                take(source(version), files, scratch / "read back")
                return version
    return None


def judged(version: ModelVersion) -> bool:
    """Return whether the gate has judged the version."""
    return verdict_of(version) != "not judged yet"


ANNOUNCED = "gpt2.announced"
"""The tag of a version whose verdict was sent as an event."""
NEWS = 7 * 86400
"""Age (s) of a version up to which its verdict is still worth an event."""


def announced(version: ModelVersion) -> bool:
    """Return whether the gate's verdict on the version was sent as an event, or need not be: it is old, or an
    operator's."""
    old = version.creation_timestamp / 1000 < time.time() - NEWS
    return old or "gpt2.forced" in version.tags or version.tags.get(ANNOUNCED) == verdict_of(version)


def row(version: ModelVersion) -> dict[str, Any]:
    """Return a table row of a version: model, version, verdict, reasons."""
    verdict = verdict_of(version)
    return {
        "model": version.name,
        "version": int(version.version),
        "verdict": verdict,
        "reasons": version.tags.get(f"gpt2.{verdict}", ""),
    }


def register(
    name: str,
    model: Artifact,
    run: Run,
    tags: Mapping[str, str],
    input_example: Any,
    params: Mapping[str, Any],
    output_example: Any,
    texts: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Register the artifact as a version of `name`, unless it is registered already; return the version.

    `texts` (content by file name) are stored among the model's files.
    """
    if existing := by_artifact(name, model.id):
        return existing
    return add(name, model, run, tags, input_example, params, output_example, texts)


def add(
    name: str,
    model: Artifact,
    run: Run,
    tags: Mapping[str, str],
    input_example: Any,
    params: Mapping[str, Any],
    output_example: Any,
    texts: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Register the artifact as a new version of `name`; return the version."""
    import gpt2

    requirements = [f"{p}=={importlib.metadata.version(p).split('+')[0]}" for p in REQUIREMENTS]
    with scratch_folder() as scratch:
        staged = scratch / "model"
        shutil.copytree(model.path / "model", staged)
        for file, text in (texts or {}).items():
            (staged / file).write_text(text, "utf-8")
        files = manifest(staged)
        with quietly():
            # Without it, files go to a folder in the working directory.
            mlflow.set_experiment(experiment_id=experiment_id())
            # `mlflow.pyfunc.log_model` would need the thread's active run, and would end it.
            info = Model.log(
                artifact_path=None,
                name="model",
                flavor=mlflow.pyfunc,
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"model": str(staged)},
                code_paths=[str(Path(gpt2.__file__).parent)],
                signature=signature(input_example, output_example, params),
                input_example=(input_example, dict(params)) if params else input_example,
                pip_requirements=requirements,
                run_id=run.id,
            )
        # Raises `RefusedModel` if the upload was cut or altered.
        take(client().get_logged_model(info.model_id).artifact_location, files, scratch / "read back")
    with contextlib.suppress(MlflowException):  # exists
        client().create_registered_model(name)
    facts = {ARTIFACT_TAG: model.id, MANIFEST_TAG: json.dumps(files, separators=(",", ":")), **tags}
    return client().create_model_version(name, source=info.model_uri, run_id=run.id, tags=facts, model_id=info.model_id)


def signature(inputs: Any, outputs: Any, params: Mapping[str, Any]) -> ModelSignature:
    """Return the signature of a list of texts, or of records. In a record, only the first field is required.

    MLflow would refuse an optional list that some records of a batch lack, so its type is any; `predict` checks it.
    """
    inferred = infer_signature(None, outputs, dict(params) or None)
    if isinstance(inputs[0], str):
        schema = Schema([ColSpec(DataType.string)])
    else:
        record = inputs[0]
        first, *more = (
            (n, DataType.string if isinstance(v, str) else Array(DataType.string)) for n, v in record.items()
        )
        kinds = [first, *((n, AnyType() if isinstance(kind, Array) else kind) for n, kind in more)]
        schema = Schema([ColSpec(kind, name, required=name == first[0]) for name, kind in kinds])
    return ModelSignature(inputs=schema, outputs=inferred.outputs, params=inferred.params)


@contextlib.contextmanager
def quietly():
    """Suppress MLflow's hints for interactive use."""
    loggers = [logging.getLogger(n) for n in ("mlflow", "mlflow.pyfunc", "mlflow.models", "mlflow.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def unusable_champions() -> list[str]:
    """Return a sentence with the remedy for each champion whose files are missing, cut or not listed. None is read."""
    found = []
    for model in client().search_registered_models("name LIKE 'gpt2-%'"):
        champion = by_alias(model.name, CHAMPION)
        try:
            if champion is not None:
                inspect(champion)
        except RefusedModel as error:
            found.append(str(error))
    return found


def challenge(name: str, version: ModelVersion) -> None:
    """Point the alias `challenger` at the version."""
    client().set_registered_model_alias(name, CHALLENGER, version.version)


def describe(name: str, version: ModelVersion, text: str) -> None:
    """Set the version's description (Markdown)."""
    client().update_model_version(name, version.version, text)


def artifact_id(address: str, name: str) -> str:
    """Return the id of the artifact that the version at an address was made from; raises `ValueError` if there is
    none."""
    parts = ADDRESS.fullmatch(address)
    if parts is None or parts["name"] != name:
        raise ValueError(f"{address!r}: is not a version of {name}; give models:/{name}@champion or models:/{name}/1")
    return find(address).tags[ARTIFACT_TAG]


def versions() -> list[dict[str, Any]]:
    """Return a row for every version of our models, newest first within a name.

    A row has name, version, aliases, verdict, reasons, tags and created (s since 1970).
    """
    rows = []
    for model in client().search_registered_models("name LIKE 'gpt2-%'"):
        aliases: dict[str, list[str]] = {}
        for alias, number in client().get_registered_model(model.name).aliases.items():
            aliases.setdefault(str(number), []).append(alias)
        for v in sorted(client().search_model_versions(f"name = '{model.name}'"), key=lambda v: -int(v.version)):
            known = aliases.get(str(v.version), [])
            rows.append(Version(v.name, int(v.version), v.creation_timestamp / 1000, "", dict(v.tags), known).row())
    return rows
