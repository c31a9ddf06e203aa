"""The rooms: each says what lives in it, none grows too large, and the contracts on imports hold because they bite."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("gpt2", "cluster", "flows")
MODULES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
ROOMS = sorted(path.parent for path in MODULES if path.name == "__init__.py")
LARGEST = 450  # lines of a file
MODULES_AT_MOST = 211  # as before the move: what comes later finds room in what is there
NAMES = {"gpt2": 20, "cluster": 16, "flows": 16}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def names_in(folder: Path) -> set[str]:
    """What `ls` shows, folders with a slash."""
    return {f"{path.name}{'/' * path.is_dir()}" for path in folder.iterdir() if path.name != "__pycache__"}


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_a_room_lists_exactly_what_lives_in_it(room):
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))) or ""
    listed = re.findall(r"^(\w[\w.-]*(?:/|\.\w+)) {2,}\S", text, re.M)
    there = {name for name in names_in(room) if name != "__init__.py" and not name.endswith(".md")}
    assert listed == sorted(there)


def test_files_and_floors_stay_small():
    assert {name_of(path) for path in MODULES if len(path.read_text("utf-8").splitlines()) > LARGEST} == set()
    assert len(MODULES) <= MODULES_AT_MOST
    assert {floor for floor, most in NAMES.items() if len(names_in(ROOT / floor)) > most} == set()


@pytest.mark.parametrize("floor", FLOORS)
def test_tests_mirror_the_rooms(floor):
    tests = ROOT / "tests" / floor
    folders = {path.relative_to(tests) for path in tests.rglob("*") if path.is_dir() and path.name != "__pycache__"}
    rooms = {
        path.relative_to(ROOT / floor).with_suffix("") for path in (ROOT / floor).rglob("*") if path.name[0] != "_"
    }
    assert folders <= rooms  # a room may be one file


class House:
    """A copy of the packages, and what `lint-imports` says of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        for floor in FLOORS:
            shutil.copytree(ROOT / floor, folder / floor, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)

    def broken(self) -> list[str]:
        """The names of the contracts that do not hold."""
        done = subprocess.run(
            [Path(sys.executable).with_name("lint-imports"), "--no-logo"],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder)},
        )
        found = re.findall(r"^(.+) BROKEN", done.stdout, re.M)
        assert bool(found) == bool(done.returncode) and "KEPT" in done.stdout, done.stdout + done.stderr
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return House(tmp_path_factory.mktemp("house"))


def test_the_contracts_hold(house):
    assert house.broken() == []


@pytest.mark.parametrize(
    ("changes", "contract"),
    [
        ({"gpt2/training/loop.py": "import gpt2.tasks.task"}, "gpt2, from the door to the ground"),
        ({"gpt2/data/text.py": "import gpt2.data.corpus", "gpt2/data/splits.py": "import gpt2.data.text"},
         "no circles, in any room"),
        ({"gpt2/newroom/__init__.py": ""}, "gpt2, from the door to the ground"),
        ({"gpt2/settings.py": "import torch"}, "settings load in a moment: no PyTorch"),
    ],
    ids=["upward", "circle", "undeclared", "torch"],
)  # fmt: skip
def test_the_contracts_bite(house, changes, contract):
    before = {name: (house.folder / name).read_bytes() for name in changes if (house.folder / name).exists()}
    for name, text in changes.items():
        path = house.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(before.get(name, b"") + f"\n{text}\n".encode())
    try:
        assert contract in house.broken()
    finally:
        for name in changes:
            path = house.folder / name
            path.write_bytes(before[name]) if name in before else shutil.rmtree(path.parent)
