"""Download models from the registry and verify them. No other code of ours reads a version's files.

The manifest of a version's files is in its tags, which are made in the same request as the version. Only files named in
the manifest are downloaded, into a folder of the home, and their sha256 is compared before use. Code that lies with a
version is never run. (`mlflow.pyfunc.load_model` does run it: use it only if you trust everyone who can write to the
registry.)
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from cluster.home import home, tracking_uri
from cluster.registry.local import ADDRESS, FOLDER, MANIFEST_TAG, forget_unused
from cluster.tracking.runs import client
from gpt2.store.artifact import digest
from gpt2.store.model_files import MODEL, Manifest, RefusedModel, compare_sizes, read_manifest, sizes, verify

GONE = "its files are gone from MLflow: did `mlflow gc` remove them?"
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's error codes for a model, version or alias that does not exist; other errors (no answer) don't mean that."""


def find(address: str) -> ModelVersion:
    """Return the version at `models:/NAME@ALIAS` or `models:/NAME/VERSION`; raises `ValueError` if there is none."""
    parts = ADDRESS.fullmatch(address)
    if parts is None:
        raise ValueError(
            f"{address!r}: is not an address of the registry; give models:/NAME@champion (`gpt2 models` lists them)"
        )
    name, alias, number = parts.groups()
    try:
        if alias:
            return client().get_model_version_by_alias(name, alias)
        return client().get_model_version(name, number)
    except MlflowException as error:
        remedy = "`gpt2 models` lists the models" if error.error_code in ABSENT else f"is {tracking_uri()} up?"
        raise ValueError(f"{address}: {error.message}; {remedy}") from None


def exact(version: ModelVersion) -> str:
    """Return the exact address of a version, as `models:/NAME/VERSION`."""
    return f"models:/{version.name}/{version.version}"


def pull(address: str) -> tuple[Path, str]:
    """Return (the folder of the verified files, the version's exact address) of the model at an address of the
    registry.

    Raises `ValueError` with the address and the first file that is missing, cut, altered, a link or unexpected.
    """
    version = find(address)
    return pull_version(version), exact(version)


def pull_version(version: ModelVersion) -> Path:
    """Return the folder of a version's verified files, in the home; raises `RefusedModel` if they differ from the
    manifest."""
    with refusals(version):
        expected = expected_files(version)
        folder = home() / "pulled" / digest(expected)[:32]
        try:
            verify(folder / MODEL, expected)
        except (OSError, RefusedModel):  # absent or damaged
            take(source(version), expected, folder)
        else:
            # The downloaded copy is intact; check that the version is, too.
            compare_sizes(expected, listed(repository(source(version))))
    os.utime(folder)
    forget_unused(folder.parent)
    return folder / MODEL


def read_text(version: ModelVersion, name: str) -> str:
    """Return the verified text of one file of a version; raises `RefusedModel` if there is no such file."""
    with refusals(version), tempfile.TemporaryDirectory() as scratch:
        expected = expected_files(version)
        if name not in expected:
            raise RefusedModel(f"it has no {name}; it was registered by an older release")
        fetch(repository(source(version)), [name], Path(scratch))
        verify(Path(scratch), {name: expected[name]})
        return (Path(scratch) / name).read_text("utf-8")


def inspect(version: ModelVersion) -> None:
    """Compare the names and sizes of a version's files with its manifest, without reading them; raises
    `RefusedModel`."""
    with refusals(version):
        compare_sizes(expected_files(version), listed(repository(source(version))))


@contextmanager
def refusals(version: ModelVersion) -> Iterator[None]:
    """Add the version's address and the remedy to the message of `RefusedModel`."""
    try:
        yield
    except RefusedModel as error:
        raise RefusedModel(
            f"{exact(version)} is refused: {error}; use another version (`gpt2 models` lists them), and if it is the "
            f"champion: gpt2 rollback {version.name}"
        ) from None


def expected_files(version: ModelVersion) -> Manifest:
    """Return the manifest in a version's tags; raises `RefusedModel` if there is none."""
    if MANIFEST_TAG not in version.tags:
        raise RefusedModel("an older release registered it, without a manifest of its files")
    return read_manifest(version.tags[MANIFEST_TAG])


def source(version: ModelVersion) -> str:
    """Return the URI of a version's files; raises `RefusedModel` if MLflow has forgotten where they are."""
    try:
        return client().get_model_version_download_uri(version.name, version.version)
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        raise RefusedModel(f"{GONE} ({error.message})") from None


def repository(uri: str) -> ArtifactRepository:
    return get_artifact_repository(uri, tracking_uri=tracking_uri())


def take(uri: str, expected: Manifest, folder: Path) -> None:
    """Download and verify files into `folder/model`, atomically."""
    with scratch_folder() as scratch:
        (scratch / MODEL).mkdir()
        files = repository(uri)
        compare_sizes(expected, listed(files))
        fetch(files, expected, scratch / MODEL)
        verify(scratch / MODEL, expected)
        scratch.chmod(0o755)  # Ray's workers may be other users
        try:
            scratch.rename(folder)
        except OSError:  # it exists: another process was faster, or it is damaged
            try:
                verify(folder / MODEL, expected)
            except (OSError, RefusedModel):
                shutil.rmtree(folder)
                scratch.rename(folder)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a temporary folder beside the downloaded models, because models may not fit into the system's temporary
    folder."""
    pulled = home() / "pulled"
    pulled.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".", dir=pulled))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def fetch(files: ArtifactRepository, names: Iterable[str], into: Path) -> None:
    """Copy the named files without verifying them; raises `RefusedModel` if one can't be read."""
    try:
        for name in names:
            if isinstance(files, LocalArtifactRepository):
                shutil.copyfile(Path(files.artifact_dir, FOLDER, name), into / name, follow_symlinks=False)
            else:
                with tempfile.TemporaryDirectory(dir=into.parent) as scratch:
                    Path(files.download_artifacts(f"{FOLDER}/{name}", scratch)).rename(into / name)
    except (OSError, MlflowException) as error:
        raise RefusedModel(f"its files can't be read: {error}") from None


def listed(files: ArtifactRepository) -> dict[str, int | None]:
    """Return the names and sizes (bytes) of the files; raises `RefusedModel` for folders and, in local stores,
    links."""
    try:
        if isinstance(files, LocalArtifactRepository):
            folder = Path(files.artifact_dir, FOLDER)
            if folder.resolve() != Path(files.artifact_dir).resolve() / FOLDER:
                raise RefusedModel("its folder is a link")
            return dict(sizes(folder))
        entries = files.list_artifacts(FOLDER)
    except FileNotFoundError:
        raise RefusedModel(GONE) from None
    except (OSError, MlflowException) as error:
        raise RefusedModel(f"its files can't be listed: {error}") from None
    if not entries:
        raise RefusedModel(GONE)
    for entry in entries:
        if entry.is_dir:
            raise RefusedModel(f"its {entry.path!r:.200} is a folder; a model has plain files only")
    return {entry.path.removeprefix(f"{FOLDER}/"): entry.file_size for entry in entries}
