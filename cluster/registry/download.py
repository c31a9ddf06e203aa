"""Models out of the registry, verified: the one way in which ours reach a version's files.

The manifest of a version's files is in its tags, made in the same request as the version. Files are taken one by one
by the manifest's names into a folder of the home, compared byte by byte, and only then given out; nothing else of
the version is read, and no code that lies with it is run. (`mlflow.pyfunc.load_model` does run it: for those who trust
whoever can write to their registry.)
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from cluster.home import home, tracking_uri
from cluster.tracking.runs import client
from gpt2.store.artifact import digest
from gpt2.store.model_files import MODEL, Manifest, RefusedModel, compare_sizes, read_manifest, sizes, verify

MANIFEST_TAG = "gpt2.manifest"
FOLDER = f"artifacts/{MODEL}"
"""Where a version's files lie in what MLflow logged."""
ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[^/@:]+)|/(?P<version>[0-9]+))")
UNUSED_DAYS = 30
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""How MLflow says that there is no such model, version or alias. What else it says (no answer, say) is no such news."""


def find(address: str) -> ModelVersion:
    """The version at `models:/NAME@ALIAS` or `models:/NAME/VERSION`; `ValueError` where there is none."""
    parts = ADDRESS.fullmatch(address)
    if parts is None:
        raise ValueError(
            f"{address!r} is not a registry address; give models:/NAME@champion (`gpt2 models` lists them)"
        )
    name, alias, number = parts.groups()
    try:
        if alias:
            return client().get_model_version_by_alias(name, alias)
        return client().get_model_version(name, number)
    except MlflowException as error:
        remedy = "`gpt2 models` lists what there is" if error.error_code in ABSENT else f"is {tracking_uri()} up?"
        raise ValueError(f"{address}: {error.message}; {remedy}") from None


def exact(version: ModelVersion) -> str:
    """The address of a version."""
    return f"models:/{version.name}/{version.version}"


def pull(address: str) -> tuple[Path, str]:
    """(the folder of the verified files, the version's exact address) of the model at an address of the registry.

    `ValueError` names the address and the first file that is missing, cut, altered, a link or not such as models have.
    """
    version = find(address)
    return pull_version(version), exact(version)


def pull_version(version: ModelVersion) -> Path:
    """The folder of a version's verified files, in the home; `RefusedModel` where they are not what was registered."""
    with refusals(version):
        expected = expected_files(version)
        folder = home() / "pulled" / digest(expected)[:32]
        try:
            verify(folder / MODEL, expected)
        except (OSError, RefusedModel):  # not there, or someone damaged it
            take(source(version), expected, folder)
        else:
            # What was pulled before is right; the version is to be so, too.
            compare_sizes(expected, listed(repository(source(version))))
    os.utime(folder)
    forget_unused(folder.parent)
    return folder / MODEL


def read_text(version: ModelVersion, name: str) -> str:
    """One file of a version, verified; `RefusedModel` where it has none such."""
    with refusals(version), tempfile.TemporaryDirectory() as scratch:
        expected = expected_files(version)
        if name not in expected:
            raise RefusedModel(f"it has no {name}; it was registered by an older release")
        fetch(repository(source(version)), [name], Path(scratch))
        verify(Path(scratch), {name: expected[name]})
        return (Path(scratch) / name).read_text("utf-8")


def inspect(version: ModelVersion) -> None:
    """Compare the names and sizes of a version's files with its manifest; read none of them."""
    with refusals(version):
        compare_sizes(expected_files(version), listed(repository(source(version))))


@contextmanager
def refusals(version: ModelVersion) -> Iterator[None]:
    """Name the version in what its files are refused for."""
    try:
        yield
    except RefusedModel as error:
        raise RefusedModel(f"{exact(version)} is refused: {error}") from None


def expected_files(version: ModelVersion) -> Manifest:
    """The manifest in a version's tags."""
    if MANIFEST_TAG not in version.tags:
        raise RefusedModel(
            "an older release registered it, without a manifest of its files; `gpt2 promote` another one"
        )
    return read_manifest(version.tags[MANIFEST_TAG])


def source(version: ModelVersion) -> str:
    """Where a version's files lie."""
    return client().get_model_version_download_uri(version.name, version.version)


def repository(uri: str) -> ArtifactRepository:
    return get_artifact_repository(uri, tracking_uri=tracking_uri())


def take(uri: str, expected: Manifest, folder: Path) -> None:
    """Download into `folder/model`, which is then there, verified, or not at all."""
    with scratch_folder() as scratch:
        (scratch / MODEL).mkdir()
        files = repository(uri)
        compare_sizes(expected, listed(files))
        fetch(files, expected, scratch / MODEL)
        verify(scratch / MODEL, expected)
        scratch.chmod(0o755)  # Ray's workers may be other users
        try:
            scratch.rename(folder)
        except OSError:  # there is one: another process was faster, or it was damaged
            try:
                verify(folder / MODEL, expected)
            except (OSError, RefusedModel):
                shutil.rmtree(folder)
                scratch.rename(folder)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder beside the pulled models, which may be larger than the system's temporary folder allows."""
    pulled = home() / "pulled"
    pulled.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".", dir=pulled))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def fetch(files: ArtifactRepository, names: Iterable[str], into: Path) -> None:
    """Copy files of those names; `RefusedModel` where one can't be had. What they hold is for the caller to verify."""
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
    """Names and sizes of the files; `RefusedModel` for folders and links. Links exist where the store is a folder."""
    try:
        if isinstance(files, LocalArtifactRepository):
            folder = Path(files.artifact_dir, FOLDER)
            if folder.resolve() != Path(files.artifact_dir).resolve() / FOLDER:
                raise RefusedModel("its folder is a link")
            return dict(sizes(folder))
        entries = files.list_artifacts(FOLDER)
    except (OSError, MlflowException) as error:
        raise RefusedModel(f"its files can't be listed: {error}") from None
    for entry in entries:
        if entry.is_dir:
            raise RefusedModel(f"its {entry.path!r:.200} is a folder; a model has plain files only")
    return {entry.path.removeprefix(f"{FOLDER}/"): entry.file_size for entry in entries}


def forget_unused(folder: Path) -> None:
    """Remove what was pulled and not used for a month."""
    for path in folder.iterdir():
        with suppress(OSError):  # another process was faster
            if time.time() - path.stat().st_mtime > UNUSED_DAYS * 86400:
                shutil.rmtree(path)
