"""A store on a real S3 server: artifacts are whole or absent there, made once, and fetched by whoever lacks them."""

import json
import pickle
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpt2.store import remote as lease
from gpt2.store.artifact import MANIFEST, DamagedArtifact, Key
from gpt2.store.remote import Distant, Lease, Remote, StoreUnreachable, open_store
from tests.services import free_port

KEY = Key("thing", {"a": 1}, {"x": "y"}, ("gpt2.settings",))


@pytest.fixture
def address(s3, request):
    return f"s3://bucket/{request.node.name}"


def machine(address, folder):
    """The store as a machine sees it whose home is the folder."""
    return open_store(address, folder, lambda: None)


def build(out):
    (out / "sub").mkdir(exist_ok=True)
    (out / "sub" / "data.txt").write_text("hello")
    (out / "same.txt").write_text("hello")
    (out / "big.bin").write_bytes(bytes(range(256)) * 4096)
    return {"count": 3}


def test_an_artifact_made_on_one_machine_is_found_on_another_and_fetched_when_it_is_read(address, tmp_path):
    one, two = machine(address, tmp_path / "one"), machine(address, tmp_path / "two")
    assert one.find(KEY) is None and two.ids("thing") == []
    made = one.make(KEY, build)
    found = two.require("thing", KEY.id)
    assert isinstance(found, Distant) and found.info["count"] == 3 and found.name == made.name
    assert not (two.root / "thing").exists()  # its manifest was enough
    assert found.file("sub/data.txt").read_text() == "hello"
    assert (found.path / MANIFEST).read_bytes() == (made.path / MANIFEST).read_bytes()
    assert two.ids("thing") == [KEY.id] and two.make(KEY, None).path == found.path

    shutil.rmtree(one.root)
    again = machine(address, tmp_path / "one")
    assert again.make(KEY, None).file("big.bin").stat().st_size == 2**20
    assert again.locate(f"{made.name}/same.txt").read_text() == "hello"
    again.remove("thing", KEY.id)
    assert machine(address, tmp_path / "three").find(KEY) is None


def test_what_is_half_uploaded_is_never_taken_for_done_and_is_swept(address, tmp_path):
    one = machine(address, tmp_path / "one")
    one.remote.write(f"thing/{KEY.id}/{'0' * 64}", b"half")
    assert one.find(KEY) is None
    one.make(KEY, build)
    files = {entry["sha256"] for entry in one.find(KEY).manifest["files"].values()}
    assert set(one.remote.names(f"thing/{KEY.id}")) == {MANIFEST, *files} and len(files) == 2


def test_a_maker_that_is_killed_while_it_uploads_leaves_no_artifact_and_is_replaced_at_once(address, s3, tmp_path):
    program = f"""
        import os, signal
        from pathlib import Path
        from gpt2.store.artifact import Key
        from gpt2.store.remote import Remote, open_store
        Remote.upload = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        store = open_store({address!r}, Path({str(tmp_path / "one")!r}), lambda: None)
        key = Key("thing", {{"a": 1}}, {{"x": "y"}}, ("gpt2.settings",))
        store.make(key, lambda out: (out / "a").write_text("a") and {{}})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -9
    one = machine(address, tmp_path / "one")
    assert one.find(KEY) is None and one.remote.names("leases")
    assert one.make(KEY, build).info["count"] == 3


def test_of_two_that_make_the_same_the_first_counts_for_both(address, tmp_path, monkeypatch):
    one, two = machine(address, tmp_path / "one"), machine(address, tmp_path / "two")
    monkeypatch.setattr(Lease, "take", lambda self: None)  # as if one had been taken for lost

    def late(out):
        one.make(KEY, build)
        (out / "other.txt").write_text("another result")
        return {"count": 4}

    assert two.make(KEY, late).info["count"] == 3
    assert sorted(two.find(KEY).manifest["files"]) == ["big.bin", "same.txt", "sub/data.txt"]


def test_two_machines_do_the_work_once(address, tmp_path):
    stores, made = [machine(address, tmp_path / name) for name in ("one", "two")], []

    def slowly(out):
        made.append(out)
        time.sleep(1)
        return build(out)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda store: store.make(KEY, slowly), stores)
    assert len(made) == 1 and first.manifest == second.manifest


def test_altered_content_is_refused_on_arrival(address, tmp_path):
    one, two = machine(address, tmp_path / "one"), machine(address, tmp_path / "two")
    made = one.make(KEY, build)
    place = f"{made.name}/{made.manifest['files']['big.bin']['sha256']}"
    one.remote.write(place, b"x" + bytes(2**20 - 1))
    with pytest.raises(DamagedArtifact, match="is not what its manifest says"):
        _ = two.find(KEY).path
    one.remote.remove(place)
    with pytest.raises(DamagedArtifact, match="is missing"):
        _ = two.find(KEY).path
    assert not (two.root / "thing").exists()


def test_what_is_in_no_artifact_travels_as_one(address, tmp_path):
    one, two = machine(address, tmp_path / "one"), machine(address, tmp_path / "two")
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "a.txt").write_text("a")
    name = one.hand(tmp_path / "folder")
    assert two.locate(name).joinpath("sub", "a.txt").read_text() == "a"
    assert two.hand(two.locate(name)) == name  # it has a name already


def test_a_store_that_was_deleted_and_made_anew_has_another_cache(address, tmp_path):
    one = machine(address, tmp_path / "one")
    one.make(KEY, build)
    one.remote.remove("")
    again = machine(address, tmp_path / "one")
    assert again.root != one.root and again.find(KEY) is None


def test_a_lease_is_freed_by_its_holder_or_by_time(address, tmp_path, monkeypatch):
    remote = Remote(address)
    first, second, third = (Lease(remote, "name", f"machine {n}", {"run": n}) for n in (1, 2, 3))
    assert first.take() is None
    assert second.take() == {"run": 1} and third.take() == {"run": 1}
    first.release()
    assert second.take() is None and third.take() in ({"run": 2}, {})
    second.ended.set()  # lost: it renews no more
    second.renewing.join()
    monkeypatch.setattr(lease, "EXPIRY", 0.3)
    assert third.take() == {"run": 2}
    time.sleep(0.4)
    with ThreadPoolExecutor(4) as pool:  # of those that see it expired one gets it
        others = [Lease(remote, "name", f"machine {n}", {"run": n}) for n in range(4, 8)]
        for other in others:
            other.watched, other.since = third.watched, third.since
        taken = list(pool.map(lambda other: other.take() is None, others))
    assert sum(taken) == 1


def test_a_renewed_lease_does_not_expire(address, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRY", 1.0)
    monkeypatch.setattr(lease, "RENEWAL", 0.1)
    holder, watcher = (Lease(Remote(address), "name", str(n), {"run": n}) for n in (1, 2))
    assert holder.take() is None
    ends = threading.Event()
    threading.Timer(3, ends.set).start()
    while not ends.is_set():
        assert watcher.take() == {"run": 1}
        time.sleep(0.05)
    holder.release()
    assert watcher.take() is None
    watcher.release()


def test_a_folder_is_a_store_without_any_of_this(tmp_path):
    for address in (str(tmp_path / "team"), f"file://{tmp_path / 'team'}"):
        store = open_store(address, tmp_path, lambda: None)
        assert store.root == tmp_path / "team" and not store.distant
        assert pickle.loads(pickle.dumps(store)).root == store.root
        assert store.make(KEY, build).path == store.root / "thing" / KEY.id
    assert open_store(None, tmp_path, lambda: None).root == tmp_path / "store"


def test_a_store_that_is_not_there_is_refused_in_seconds(s3, tmp_path, monkeypatch):
    with pytest.raises(StoreUnreachable, match="there is no such bucket"):
        machine("s3://absent/x", tmp_path)
    with pytest.raises(StoreUnreachable, match="GPT2_STORE=nonsense://x"):
        machine("nonsense://x", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreUnreachable, match="check the address"):
        machine("s3://bucket/x", tmp_path)
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_identity_is_the_same_for_all(address):
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: Remote(address).identity(), range(4)))) == 1
    assert json.loads(Remote(address).read("store.json"))["id"]


def test_work_in_progress_has_no_name(address, tmp_path):
    one = machine(address, tmp_path / "one")
    for folder in (".partial", ".ranks"):
        work = one.root / folder / "base-1" / "_model"
        work.mkdir(parents=True)
        (work / "a.txt").write_text(folder)
        assert one.name(work) == str(work)
        name = one.hand(work)
        assert machine(address, tmp_path / "two").locate(name).joinpath("a.txt").read_text() == folder
        one.forget(name)
    assert one.remote.names("handed") == []
