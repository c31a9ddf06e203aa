"""The registry's own file, read without MLflow, tells what MLflow tells; whatever is unusual is left to MLflow."""

import sqlite3

import pytest

from cluster.home import tracking_uri
from cluster.registry import download, local, resolve
from cluster.registry.versions import challenge, versions
from cluster.tracking.runs import client
from gpt2.store.model_files import RefusedModel
from tests.cluster.small import registered

NAME = "gpt2-local"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three versions, the second of which is deleted, beside a model that is not ours."""
    folders = [tmp_path_factory.mktemp("model") for _ in range(3)]
    made = [registered(NAME, folder, seed=seed) for seed, folder in enumerate(folders)]
    client().set_model_version_tag(NAME, "1", "gpt2.refused", "worse than the champion")
    client().delete_model_version(NAME, "2")
    challenge(NAME, made[2])
    client().set_registered_model_alias(NAME, "champion", "1")
    client().create_registered_model("GPT2-not-ours")
    client().create_model_version("GPT2-not-ours", "models:/gpt2-local/1")
    return folders


def test_the_rows_are_those_of_mlflow(folders):
    assert resolve.listed() == versions()
    assert [row["version"] for row in resolve.listed() if row["name"] == NAME] == [3, 1]


@pytest.mark.parametrize("address", [f"models:/{NAME}@champion", f"models:/{NAME}@challenger", f"models:/{NAME}/3"])
def test_a_copy_that_is_there_is_found_and_one_that_is_not_is_left_to_mlflow(folders, address):
    fetched = download.pull(address)
    assert local.pull(address) == fetched
    for absent in (f"models:/{NAME}@nobody", f"models:/{NAME}/2", f"models:/{NAME}/9", "models:/gpt2-none/1", "x"):
        assert local.pull(absent) is None


def test_a_damaged_copy_or_version_is_left_to_mlflow_which_refuses_or_mends_it(folders):
    folder, exact = download.pull(f"models:/{NAME}/3")
    (folder / "task.json").write_text("{}")
    assert local.pull(exact) is None
    assert resolve.models(exact) == (folder, exact) and local.pull(exact) == (folder, exact)
    stored = next(v for v in local.versions() if (v.name, v.version) == (NAME, 3)).place.removeprefix("file://")
    with open(f"{stored}/{local.FOLDER}/task.json", "a") as file:
        file.write(" ")
    assert local.pull(exact) is None
    with pytest.raises(RefusedModel, match=r"task.json has"):
        resolve.models(exact)


def test_another_schema_or_place_is_left_to_mlflow(folders, monkeypatch):
    path = tracking_uri().removeprefix(local.SQLITE)
    with sqlite3.connect(path) as file:
        schema = file.execute("SELECT version_num FROM alembic_version").fetchall()
    assert schema == [(local.SCHEMA,)]  # if this fails after an update, compare the queries with the new schema
    monkeypatch.setattr(local, "SCHEMA", "another")
    assert local.versions() is None
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert local.versions() is None
