"""A version arrives in another registry whole or not at all, with verdict, card and evidence; the alias moves last."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2
from cluster.registry import download, promotion, versions
from cluster.registry.versions import by_alias
from cluster.tracking.runs import Run, client, connected_to
from gpt2.store.model_files import RefusedModel
from tests.cluster.small import TEXTS, registered
from tests.services import mlflow_server

NAME = "gpt2-travels"
CHAMPION = f"models:/{NAME}@champion"
SILENT = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def champion(tmp_path_factory):
    """The second version of a model, a champion that replaced the first, with evidence in its run."""
    home = tmp_path_factory.mktemp("from")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2_HOME", str(home))
        for seed in (1, 2):
            tags = {"gpt2.metric": "macro_f1", "gpt2.value": "0.71", "gpt2.data": "0123456789ab"}
            texts = {"README.md": "# A card\n", "reproduce.json": "{}"}
            version = registered(NAME, tmp_path_factory.mktemp("made"), seed=seed, tags=tags, texts=texts)
            promotion.promote(NAME, version.version, "a test", force=True)
        run = Run(version.run_id)
        run.facts({"steps": 3}, {"model": {"kind": "sentiment", "id": "ab" * 8, "counts": {"rows": 5}}})
        run.params({"steps": 3})
        run.metrics({"macro_f1": 0.71})
        run.tag({"gpt2.stage": "register-sentiment", "git.commit": "f" * 40})
        for name in ("verdict.json", "verdict.html", "predictions/own.csv"):
            run.text(f"the text of {name}", f"verdict/{name}")
        run.end()
        versions.describe(NAME, version, f'gpt2.load("models:/{NAME}/2"), not models:/{NAME}/20')
        yield download.find(CHAMPION)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """The file of a registry without anything: MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    with connected_to(f"sqlite:///{path}"):
        return path


@pytest.fixture
def there(empty, tmp_path):
    """Another home, with an empty registry."""
    (tmp_path / "there" / "mlflow").mkdir(parents=True)
    shutil.copy(empty, tmp_path / "there" / "mlflow" / "mlflow.db")
    return tmp_path / "there"


def address(home):
    return f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"


def sources(version):
    return client().get_run(version.run_id), download.read_text(version, "README.md")


def check(champion, to, number="1"):
    """Compare what is at `to` with the original."""
    original, card = sources(champion)
    with connected_to(to):
        there = download.find(CHAMPION)
        assert str(there.version) == number
        run, card_there = sources(there)
        assert (card_there, download.expected_files(there)) == (card, download.expected_files(champion))
        lost = {key: value for key, value in champion.tags.items() if there.tags.get(key) != value}
        assert lost.keys() <= {promotion.REPLACED, promotion.PROMOTED_AT, promotion.PROMOTED}
        assert there.tags[promotion.PROMOTED].startswith(f"{champion.tags[promotion.PROMOTED]}; by an operator: copied")
        assert there.tags[promotion.COPIED_FROM].startswith(f"models:/{NAME}/2 of sqlite:///")
        assert there.tags[promotion.PARENT_VERSION] == "none" and promotion.REPLACED not in there.tags
        assert there.description == f'gpt2.load("models:/{NAME}/{number}"), not models:/{NAME}/20'
        assert (run.data.params, run.data.metrics) == (original.data.params, original.data.metrics)
        assert run.data.tags["gpt2.stage"] == "register-sentiment" and run.info.status == "FINISHED"
        assert [i.dataset.name for i in run.inputs.dataset_inputs] == ["sentiment/" + "ab" * 8]
        page = client().download_artifacts(run.info.run_id, "verdict/predictions/own.csv")
        assert Path(page).read_text() == "the text of predictions/own.csv"


def test_a_champion_arrives_whole_and_once(champion, there):
    answers = gpt2.load(CHAMPION).predict(list(TEXTS))
    made, new = promotion.copy(CHAMPION, str(there))
    to = address(there)
    assert new and made.aliases == ["champion"]
    check(champion, to)
    again, new = promotion.copy(CHAMPION, to)
    assert not new and again.version == made.version
    assert (
        len(list((there / "mlflow" / "artifacts").rglob("head.safetensors"))) == 1
    )  # beside its database, and sent once
    with connected_to(to):
        assert gpt2.load(CHAMPION).predict(list(TEXTS)).equals(answers)
    assert download.find(CHAMPION).version == champion.version  # this process is back in its own registry


def test_a_number_moves_no_alias_and_is_no_rival_of_the_champion(champion, there):
    to = str(there)
    promotion.copy(f"models:/{NAME}/1", to)
    version, _ = promotion.copy(CHAMPION, to)
    third, _ = promotion.copy(f"models:/{NAME}/1", to)
    assert (int(version.version), int(third.version), third.aliases) == (2, 1, [])
    assert versions.judged(third)
    with connected_to(address(there)):
        assert str(by_alias(NAME, "champion").version) == "2" and by_alias(NAME, "previous") is None
        assert promotion.better_than(version, lambda other: pytest.fail("it is measured")) is None


@pytest.mark.parametrize("point", ["versions.describe", "promotion.promote"])
def test_an_interrupted_copy_leaves_no_champion_and_goes_on(champion, there, point):
    def stop(*arguments, **named):
        raise KeyboardInterrupt

    module, name = point.split(".")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr({"versions": versions, "promotion": promotion}[module], name, stop)
        promotion.copy(CHAMPION, str(there))
    to = address(there)
    with connected_to(to):
        assert by_alias(NAME, "champion") is None
        assert len(client().search_model_versions(f"name = '{NAME}'")) == 1
    assert not promotion.copy(CHAMPION, to)[1]
    check(champion, to)


KILLED = """
import os, signal, sys
from cluster.process_env import configure; configure()
from cluster.registry import promotion, versions
versions.take = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
promotion.copy(sys.argv[1], sys.argv[2])
"""


def test_a_killed_copy_leaves_no_version(champion, there):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    killed = subprocess.run([sys.executable, "-c", KILLED, CHAMPION, str(there)], env=environment)
    assert killed.returncode == -signal.SIGKILL
    to = address(there)
    with connected_to(to):
        assert not client().search_model_versions(f"name = '{NAME}'")
    assert promotion.copy(CHAMPION, to)[1]
    check(champion, to)


def test_what_arrives_altered_is_refused(champion, there):
    take = versions.take

    def altered(*arguments):
        [stored] = (there / "mlflow" / "artifacts").rglob("artifacts/model/head.safetensors")
        content = bytearray(stored.read_bytes())
        content[-1] ^= 1
        stored.write_bytes(content)
        take(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RefusedModel, match=r"head\.safetensors was altered"):
        patch.setattr(versions, "take", altered)
        promotion.copy(CHAMPION, str(there))
    with connected_to(address(there)):
        assert not client().search_model_versions(f"name = '{NAME}'")


def test_what_the_other_gate_refused_stays_refused(champion, there):
    promotion.copy(f"models:/{NAME}/1", str(there))
    to = address(there)
    with connected_to(to):
        client().delete_model_version_tag(NAME, "1", promotion.PROMOTED)
        client().set_model_version_tag(NAME, "1", promotion.REFUSED, "worse there")
    client().set_registered_model_alias(NAME, "challenger", "1")
    assert promotion.copy(f"models:/{NAME}@challenger", to)[0].aliases == ["challenger"]
    client().set_registered_model_alias(NAME, "champion", "1")
    try:
        with pytest.raises(ValueError, match="was not promoted: worse there"):
            promotion.copy(CHAMPION, to)
    finally:
        client().set_registered_model_alias(NAME, "champion", "2")


def test_a_target_of_no_use_is_refused_at_once(champion, tmp_path):
    (tmp_path / "file").write_text("words")
    for to, said in (
        (str(tmp_path / "file"), "is a file"),
        (f"sqlite:///{tmp_path / 'file'}", "is no SQLite file"),
        (f"sqlite:///{tmp_path}/none/mlflow.db", "is no SQLite file"),
        ("postgresql://me:secret@host/db", r"--to postgresql://host/db: give http"),
        (os.environ["GPT2_HOME"], "is the registry that the model is in"),
        (SILENT, "does not answer.*correct the address"),
    ):
        with pytest.raises(ValueError, match=said):
            promotion.copy(CHAMPION, to)
    assert download.find(CHAMPION).version == champion.version


@pytest.mark.slow
def test_to_a_server_and_from_it(champion, there, tmp_path):
    with mlflow_server(tmp_path) as port:
        server = f"http://127.0.0.1:{port}"
        assert promotion.copy(CHAMPION, server)[1] and not promotion.copy(CHAMPION, server)[1]
        check(champion, server)
        with connected_to(server):
            back, new = promotion.copy(CHAMPION, str(there))
            assert new and back.tags[promotion.COPIED_FROM] == f"models:/{NAME}/1 of {server}"
