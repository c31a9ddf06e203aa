"""A version's files are compared with its manifest before anything is loaded; what is not a model's is refused."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

import gpt2
from cluster.home import home
from cluster.registry import download, versions
from cluster.registry.download import FOLDER, MANIFEST_TAG
from cluster.tracking.runs import client
from gpt2.loading import read
from gpt2.store.model_files import RefusedModel, check_name, manifest
from tests.cluster.small import TEXTS, model_folder, registered


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A registered version and the folder that it was made from."""
    folder = tmp_path_factory.mktemp("whole")
    return registered("gpt2-whole", folder), folder / "model"


@pytest.fixture
def version_of(tmp_path):
    """Makes a version of a folder that an attacker wrote: `version_of(files, manifest text)`."""

    def make(folder, listed):
        name = f"gpt2-{tmp_path.name}"
        client().create_registered_model(name)
        made = client().create_model_version(name, folder.as_uri(), tags={MANIFEST_TAG: listed})
        return f"models:/{name}/{made.version}"

    return make


@pytest.fixture
def copy(tmp_path, whole):
    """A copy of the whole model's files, as MLflow stores them, and its manifest's text."""
    shutil.copytree(whole[1], tmp_path / "stored" / FOLDER)
    return tmp_path / "stored", whole[0].tags[MANIFEST_TAG]


def test_a_whole_version_loads_and_answers_as_the_folder_does(whole):
    version, folder = whole
    client().set_registered_model_alias(version.name, "champion", version.version)
    model = gpt2.load(f"models:/{version.name}@champion")
    assert (model.task, model.address) == ("sentiment", f"models:/{version.name}/{version.version}")
    expected = read(folder)[1].predict(list(TEXTS), {})
    assert model.predict(list(TEXTS)).equals(expected)
    assert gpt2.load(folder).predict(list(TEXTS)).equals(expected)
    with pytest.raises(ValueError, match="no parameter 'temperature'"):
        model.predict(list(TEXTS), temperature=1.0)


def test_the_cache_is_verified_each_time(whole):
    version, folder = whole
    pulled = download.pull_version(version)
    assert pulled.is_relative_to(home() / "pulled") and manifest(pulled) == manifest(folder)
    (pulled / "config.json").write_text("{}")
    (pulled / "more.py").write_text("raise SystemExit")
    assert manifest(download.pull_version(version)) == manifest(folder)
    before = (pulled / "config.json").stat()
    download.pull_version(version)
    assert (pulled / "config.json").stat().st_ino == before.st_ino  # not fetched again


def test_what_is_not_used_for_a_month_goes(whole):
    old = home() / "pulled" / "old"
    (old / "model").mkdir(parents=True)
    os.utime(old, (0, 0))
    download.pull_version(whole[0])
    assert not old.exists()


def damage_byte(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a changed byte": (damage_byte, "model.safetensors was altered"),
    "a cut file": (lambda f: os.truncate(f / "head.safetensors", 40), "head.safetensors has 40 bytes"),
    "a missing file": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "an extra file": (lambda f: (f / "notes.txt").write_text("hi"), "notes.txt is not in its manifest"),
    "a pickle": (lambda f: (f / "pytorch_model.bin").write_bytes(pickle.dumps(1)), "'pytorch_model.bin'"),
    "a module": (lambda f: (f / "modeling_gpt2.py").write_text("raise SystemExit"), "'modeling_gpt2.py'"),
    "a hidden file": (lambda f: (f / ".x.json").write_text("{}"), "'.x.json'"),
    "a folder": (lambda f: (f / "more").mkdir(), "'more'"),
    "a folder with a file's name": (lambda f: (f / "more.json").mkdir(), "more.json is a link or a folder"),
    "no files": (shutil.rmtree, "files are gone from MLflow"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_before_anything_is_loaded(damage, copy, version_of, monkeypatch):
    stored, listed = copy
    address = version_of(stored, listed)
    gpt2.load(address)  # it was whole
    shutil.rmtree(home() / "pulled")
    break_it, reason = DAMAGES[damage]
    break_it(stored / FOLDER)
    monkeypatch.setattr("gpt2.loading.read", lambda directory: pytest.fail("something was loaded"))
    with pytest.raises(RefusedModel, match=f"{address} is refused: .*{reason}"):
        gpt2.load(address)
    assert not list((home() / "pulled").glob("*/model")) and not list((home() / "pulled").glob(".*"))
    if damage != "a changed byte":  # sizes and names alone
        with pytest.raises(RefusedModel):
            download.inspect(download.find(address))


@pytest.mark.parametrize("where", ["file", "folder", "artifacts"])
def test_links_are_refused_even_to_the_right_bytes(where, copy, version_of, tmp_path):
    stored, listed = copy
    path = {"file": stored / FOLDER / "config.json", "folder": stored / FOLDER, "artifacts": stored / "artifacts"}[
        where
    ]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedModel, match="link"):
        gpt2.load(version_of(stored, listed))


@pytest.mark.parametrize(
    "name",
    [
        "../task.json",
        "/etc/passwd.txt",
        "a/b.json",
        "..",
        "a\\b.json",
        "x.json\n",
        "x\0.json",
        ".json",
        "x.pkl",
        "x.py",
    ],
)
def test_names_that_no_model_has(name):
    with pytest.raises(RefusedModel):
        check_name(name)


@pytest.mark.parametrize("name", ["x.JSON", "x.json/", "a" * 300 + ".json", "ä.json", 5, None], ids=repr)
def test_more_names_that_no_model_has(name):
    with pytest.raises(RefusedModel):
        check_name(name)


ENTRY = {"sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    "listed",
    ["", "[]", "{}", "5", "[" * 100_000, json.dumps({"../../task.json": ENTRY}), json.dumps({"x.pkl": ENTRY})]
    + [json.dumps({"x.json": e}) for e in ({}, 5, {"sha256": "0" * 64}, ENTRY | {"size": "1"}, ENTRY | {"sha256": 1})]
    + [json.dumps({f"{i}.json": ENTRY for i in range(300)})],
)
def test_manifests_that_are_none(listed, copy, version_of):
    with pytest.raises(RefusedModel):
        gpt2.load(version_of(copy[0], listed))


def test_a_version_without_manifest_is_refused_and_does_not_count(copy, version_of, tmp_path):
    client().create_registered_model("gpt2-bare")
    made = client().create_model_version("gpt2-bare", copy[0].as_uri(), tags={versions.ARTIFACT_TAG: "x"})
    with pytest.raises(RefusedModel, match="without a manifest"):
        gpt2.load(f"models:/gpt2-bare/{made.version}")
    assert versions.by_artifact("gpt2-bare", "x") is None


def write(folder, name, content):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def edit(folder, **changes):
    write(folder, "config.json", json.loads((folder / "config.json").read_text()) | changes)


HUGE_HEADER = struct.pack("<Q", 1 << 62) + b"{}"
CONTENTS = {  # files that an attacker lists in a manifest of his own
    "auto_map": lambda f: edit(f, auto_map={"AutoModel": "evil.Model"}, model_type="evil"),
    "a huge header": lambda f: (f / "model.safetensors").write_bytes(HUGE_HEADER),
    "a huge header of the head": lambda f: (f / "head.safetensors").write_bytes(HUGE_HEADER),
    "a pickle by another name": lambda f: (f / "model.safetensors").write_bytes(pickle.dumps([1])),
    "a huge model": lambda f: edit(f, n_embd=16384, n_head=1, n_layer=12, vocab_size=270),
    "a deep task": lambda f: write(f, "task.json", "[" * 100_000),
    "an unknown task": lambda f: write(f, "task.json", {"task": "../../evil"}),
    "a task that is none": lambda f: write(f, "task.json", {"task": ["sentiment"]}),
    "no labels": lambda f: write(f, "task.json", {"task": "sentiment"}),
    "more labels": lambda f: write(f, "task.json", {"task": "sentiment", "labels": ["a", "b", "c"]}),
    "no tokenizer": lambda f: write(f, "tokenizer.json", {"version": "1.0"}),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_hostile_contents_are_a_value_error(content, copy, version_of, tmp_path):
    stored, _ = copy
    CONTENTS[content](stored / FOLDER)
    with pytest.raises(ValueError):
        gpt2.load(version_of(stored, json.dumps(manifest(stored / FOLDER))))


def test_no_code_beside_the_model_is_run(copy, version_of, tmp_path):
    """MLmodel, loader module and pickle beside the model's folder: what `mlflow.pyfunc.load_model` would run."""
    stored, listed = copy
    marker = tmp_path / "ran"
    (stored / "code").mkdir()
    for module in ("gpt2.py", "loader.py", "pulled.py"):
        (stored / "code" / module).write_text(f"open({str(marker)!r}, 'w')\n")
    (stored / "MLmodel").write_text("flavors:\n  python_function:\n    loader_module: loader\n    code: code\n")
    address = version_of(stored, listed)
    assert len(gpt2.load(address).predict(list(TEXTS))) == 2
    assert not marker.exists()
    with pytest.raises(AttributeError, match="_load_pyfunc"):
        mlflow.pyfunc.load_model(address)
    assert marker.exists()  # the trap works


def test_an_upload_that_was_cut_makes_no_version(tmp_path, monkeypatch):
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    upload = LocalArtifactRepository.log_artifacts

    def cut(self, folder, artifact_path=None):
        upload(self, folder, artifact_path)
        for path in Path(self.artifact_dir).rglob("head.safetensors"):
            os.truncate(path, 10)

    monkeypatch.setattr(LocalArtifactRepository, "log_artifacts", cut)
    with pytest.raises(RefusedModel, match=r"head\.safetensors has 10 bytes"):
        registered("gpt2-cut", tmp_path)
    assert not client().search_model_versions("name = 'gpt2-cut'")


@pytest.mark.parametrize(
    "address", ["models:/x", "models:/x@a/b", "models:/x/latest", "models:/../x@a", "models:/x/1/2"]
)
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match="models:/"):
        gpt2.load(address)


def test_other_schemes_and_folders_are_told(tmp_path):
    with pytest.raises(ValueError, match="reads elsewhere:/ addresses"):
        gpt2.load("elsewhere:/x")
    with pytest.raises(ValueError, match="is not a directory; give"):
        gpt2.load(tmp_path / "none")
    with pytest.raises(ValueError, match="gpt2-nothing"):
        gpt2.load("models:/gpt2-nothing@champion")


def test_without_the_clusters_packages_it_says_so(tmp_path):
    """mlflow is absent: a folder loads, an address says what is missing."""
    model_folder(tmp_path)
    program = f"""
import sys
sys.modules["mlflow"] = None
import gpt2
assert "torch" not in sys.modules
print(len(gpt2.load({str(tmp_path / "model")!r}).predict(["a b"])))
try:
    gpt2.load("models:/gpt2-sentiment@champion")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1\n") and "needs mlflow, which is not installed" in done.stdout
