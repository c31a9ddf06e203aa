"""The store: an artifact exists whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from gpt2.store.artifact import Artifact, DamagedArtifact, Key, Store, read_manifest, write_atomically
from gpt2.store.code import code_version, module_versions

KEY = Key("thing", {"a": 1}, {"x": "y"}, ("gpt2.settings",))


def build(out):
    (out / "sub").mkdir(exist_ok=True)
    (out / "sub" / "data.txt").write_text("hello")
    (out / "_scratch").mkdir(exist_ok=True)
    (out / "_scratch" / "big").write_text("x")
    return {"count": 3}


def test_made_once_and_found(tmp_path):
    store, calls = Store(tmp_path), []

    def counting(out):
        calls.append(out)
        return build(out)

    first, second = store.make(KEY, counting), store.make(KEY, counting)
    assert len(calls) == 1
    assert first.id == second.id == KEY.id
    assert second.info["count"] == 3
    assert second.file("sub/data.txt").read_text() == "hello"
    assert not (second.path / "_scratch").exists()
    assert not store.partial(KEY).exists()
    second.verify()


def test_id_depends_on_each_part():
    ids = {
        KEY.id,
        Key("other", {"a": 1}, {"x": "y"}, ("gpt2.settings",)).id,
        Key("thing", {"a": 2}, {"x": "y"}, ("gpt2.settings",)).id,
        Key("thing", {"a": 1}, {"x": "z"}, ("gpt2.settings",)).id,
        Key("thing", {"a": 1}, {"x": "y"}, ("gpt2.store.artifact",)).id,
    }
    assert len(ids) == 5


def test_code_version_ignores_comments_and_docstrings(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    variants = ['"""Doc."""\nx = 1  # why\n', "x = 1\n", "x = 2\n"]
    versions = []
    for i, text in enumerate(variants):
        (tmp_path / f"module_{i}.py").write_text(text)
        versions.append(code_version(f"module_{i}"))

    (tmp_path / "same.py").write_text(variants[0])
    a = code_version("same")
    module_versions.cache_clear()
    (tmp_path / "same.py").write_text(variants[1])
    b = code_version("same")
    module_versions.cache_clear()
    (tmp_path / "same.py").write_text(variants[2])
    c = code_version("same")
    assert a == b != c
    assert len(set(versions)) == 3  # the name of a module is part of its version


def test_code_version_of_a_package_counts_every_module_in_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    inner = tmp_path / "whole" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").write_text("")
    versions = []
    for text in ("x = 1\n", "x = 2\n", "x = 2  # why\n"):
        (inner / "deep.py").write_text(text)
        module_versions.cache_clear()
        versions.append(code_version("whole"))
    (inner / "another.py").write_text("")
    module_versions.cache_clear()
    assert versions[0] != versions[1] == versions[2] != code_version("whole")


def test_failed_build_leaves_no_artifact_but_its_work(tmp_path):
    store = Store(tmp_path)

    def fails(out):
        (out / "half").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.make(KEY, fails)
    assert store.find(KEY) is None
    assert (store.partial(KEY) / "half").exists()


@pytest.mark.parametrize("damage", ["delete", "cut", "empty manifest", "cut manifest", "foreign manifest"])
def test_damage_is_not_an_artifact(tmp_path, damage):
    store = Store(tmp_path)
    artifact = store.make(KEY, build)
    data, manifest = artifact.path / "sub/data.txt", artifact.path / "manifest.json"
    match damage:
        case "delete":
            data.unlink()
        case "cut":
            data.write_text("hel")
        case "empty manifest":
            manifest.write_text("")
        case "cut manifest":
            manifest.write_text(manifest.read_text()[:50])
        case "foreign manifest":
            manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "id": "0" * 16}))
    assert store.find(KEY) is None
    assert store.make(KEY, build).file("sub/data.txt").read_text() == "hello"


def test_flipped_byte_is_found(tmp_path):
    artifact = Store(tmp_path).make(KEY, build)
    (artifact.path / "sub/data.txt").write_text("hellO")
    assert read_manifest(artifact.path) is not None  # the size is right
    with pytest.raises(DamagedArtifact, match=r"data\.txt"):
        artifact.verify()
    with pytest.raises(DamagedArtifact):
        Store(tmp_path).require("thing", KEY.id)


def test_unknown_file_is_refused(tmp_path):
    artifact = Store(tmp_path).make(KEY, build)
    assert isinstance(artifact, Artifact)
    with pytest.raises(KeyError, match="no file 'nope'"):
        artifact.file("nope")


def test_a_manifest_that_was_being_written_is_no_file_of_the_artifact(tmp_path):
    """In a container the next process often has the same number."""
    store, key = Store(tmp_path), Key("numbers")
    store.partial(key).mkdir(parents=True)
    for number in (os.getpid(), os.getpid() + 1):
        (store.partial(key) / f".manifest.json.{number}.tmp").write_text("{")
    made = store.make(key, lambda out: (out / "a.txt").write_text("1") and {})
    assert list(made.manifest["files"]) == ["a.txt"] and store.find(key) is not None
    assert sorted(p.name for p in made.path.iterdir()) == ["a.txt", "manifest.json"]


def test_killed_build_is_continued(tmp_path):
    program = textwrap.dedent(
        f"""
        import os, signal
        from gpt2.store.artifact import Key, Store
        def build(out):
            (out / "first").write_text("earned")
            os.kill(os.getpid(), signal.SIGKILL)
        Store({str(tmp_path)!r}).make(Key("thing", {{"a": 1}}, {{"x": "y"}}, ("gpt2.settings",)), build)
        """
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    store = Store(tmp_path)
    assert store.find(KEY) is None

    def resumes(out):
        assert (out / "first").read_text() == "earned"
        return build(out)

    assert sorted(store.make(KEY, resumes).manifest["files"]) == ["first", "sub/data.txt"]


def test_two_processes_make_it_once(tmp_path):
    program = textwrap.dedent(
        f"""
        import time
        from gpt2.store.artifact import Key, Store
        def build(out):
            time.sleep(0.5)
            with open({str(tmp_path / "calls")!r}, "a") as f:
                f.write("call ")
            (out / "data").write_text("x")
        Store({str(tmp_path / "store")!r}).make(Key("thing"), build)
        """
    )
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [p.wait() for p in running] == [0, 0, 0]
    assert (tmp_path / "calls").read_text() == "call "


def test_write_atomically_leaves_no_litter(tmp_path):
    write_atomically(tmp_path / "f", b"one")
    write_atomically(tmp_path / "f", b"two")
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"two"
