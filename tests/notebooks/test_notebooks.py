"""The notebooks run top to bottom from a clean kernel, and as committed show what they say."""

import re
from pathlib import Path

import nbformat
import pytest

from notebooks.execute import execute

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 700_000  # bytes


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def figures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_with_all_outputs_in_order(path):
    notebook = read(path)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert figures(notebook) >= 3
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not [cell.source for cell in cells if re.search(r"^\s*(def|class) ", cell.source, re.M)]
    assert path.stat().st_size < LARGEST
    assert str(FOLDER.parent) not in path.read_text()


def test_links_lead_somewhere():
    for path in NOTEBOOKS:
        for link in re.findall(r"\]\(([^)#]+\.ipynb)\)", path.read_text()):
            assert (FOLDER / link).exists(), f"{path.name} links to {link}"


def test_the_first_runs_from_a_clean_kernel(monkeypatch, tmp_path):
    """Shortened: `make notebooks` and the slow test run all of it."""
    monkeypatch.setenv("GPT2_NOTEBOOK_STEPS", "12")
    done = execute(NOTEBOOKS[0], tmp_path)
    assert figures(done) == figures(read(NOTEBOOKS[0]))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_each_runs_whole_from_a_clean_kernel(path, tmp_path):
    done = execute(path, tmp_path)
    assert figures(done) == figures(read(path))
