"""The documents hold: their snippets run as they stand, their commands exist, their links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cyclopts import CycloptsError, MissingArgumentError

import gpt2
from flows.cli import app
from flows.config import preset_names, resolve

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "gpt2/**/*.md", "cluster/**/*.md", "flows/**/*.md")
    for path in ROOT.glob(pattern)
)  # fmt: skip
README = ROOT / "README.md"
READMES = [path for path in DOCUMENTS if path.name == "README.md"]
LARGEST = 120  # lines of README.md


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S)


def lines(path: Path) -> list[str]:
    """The command lines of the bash blocks and of the tables, without comments."""
    found = [line for block in blocks(path, "bash") for line in block.replace("\\\n", " ").splitlines()]
    rows = (line for line in path.read_text("utf-8").splitlines() if line.startswith("|"))
    found += [code for row in rows for code in re.findall(r"`((?:gpt2|make) [^`]+)`", row)]
    return [line for line in found if line.strip() and not line.startswith("#")]


def commands(program: str) -> list:
    """A case for each command line of a program in the documents: its words after the program's name."""
    found = []
    for path in DOCUMENTS:
        for line in lines(path):
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z0-9_]+=", words[0]):  # the environment
                words.pop(0)
            if words and words[0] == program:
                found.append(pytest.param(words[1:], id=f"{name_of(path)}: {' '.join(words)}"))
    return found


def snippets(*paths: Path) -> list:
    """A case for each Python snippet."""
    return [
        pytest.param(text, id=f"{name_of(path)}-{i}") for path in paths for i, text in enumerate(blocks(path, "python"))
    ]


def anchor(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a home of its own, in which small models are the champions of gpt2-sentiment and gpt2-base."""
    from cluster.tracking.runs import client
    from tests.cluster.small import registered

    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2_HOME", str(folder / ".gpt2"))
        for task in ("sentiment", "base"):
            version = registered(f"gpt2-{task}", tmp_path_factory.mktemp(task), task)
            client().set_registered_model_alias(version.name, "champion", version.version)
        yield folder


@pytest.mark.parametrize("text", snippets(*READMES))
@pytest.mark.filterwarnings("ignore:the prompts of")  # the small models read little at a time
def test_snippets_run_as_they_stand(models, monkeypatch, text):
    monkeypatch.chdir(models)
    exec(compile(text, "a snippet", "exec"), {"__name__": "snippet"})


def test_the_public_modules_need_one_import_which_is_cheap():
    code = "import sys, gpt2; assert 'torch' not in sys.modules; gpt2.weights.load; gpt2.fewshot.FewShot; gpt2.load"
    environment = {**os.environ, "PYTHONPATH": str(Path(gpt2.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_the_example_of_a_task_is_one(tmp_path):
    """From a file to a report, with a model that learned nothing."""
    import pandas as pd

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.evaluation import report
    from gpt2.model.config import ModelConfig
    from gpt2.model.transformer import GPT2

    [text] = [text for text in blocks(ROOT / "gpt2" / "README.md", "python") if "TASK = " in text]
    module: dict = {"__name__": "gpt2.tasks.pairs"}
    exec(compile(text, "pairs.py", "exec"), module)
    task, source = module["TASK"], tmp_path / "pairs.csv"
    rows = [(f"we are {i % 7} late", f"we are {i % 7} late" if i % 2 else "a lovely crew", i % 2) for i in range(60)]
    pd.DataFrame(rows, columns=["first", "second", "same"]).to_csv(source, index=False)
    examples, model, out = (tmp_path / name for name in ("examples", "model", "report"))
    examples.mkdir(), out.mkdir()
    counts = task.prepare(task.Settings(), source, examples)
    tokenizer = Tokenizer.train([" ".join(row[:2]) for row in rows], 262)
    network = GPT2(ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=262))
    learner, data = task.module(network, examples, tokenizer), task.dataset(examples, "train", tokenizer, 32)
    assert len(data) == counts["train"] == task.samples(examples, counts, 32) == 36
    learner(**data.batch([0, 1, 2], 0)).backward()
    task.save(learner, examples, tokenizer, 32, model)
    written = report.write(task.evaluate(model, examples, out), out)
    assert 0 <= written["metrics"]["accuracy"] <= 1
    learner.eval()
    expected = learner.logits(*list(data.batch([0], 0).values())[:2]).softmax(-1)[0, 1].detach()
    first = pd.read_parquet(examples / "train.parquet").to_dict("records")[:1]
    assert task.predictor(model).predict(first, {})["same"][0] == pytest.approx(float(expected))


@pytest.mark.parametrize("words", commands("gpt2"))
def test_commands_are_the_programs(words):
    """The command and its options exist, and the settings of `gpt2 run` are settings."""
    try:
        _, bound, *_ = app.parse_args(words, exit_on_error=False, print_error=False)
    except MissingArgumentError:
        assert len(words) == 1  # the command's name alone, in a table
        return
    if words[0] == "run":
        resolve(bound.arguments.get("preset", "laptop"), None, bound.arguments.get("set_") or ())


@pytest.mark.parametrize("words", [["nope"], ["up", "--nope"], ["run", "--set"], ["predict", "models:/x@y"]])
def test_other_commands_are_not(words):
    with pytest.raises(CycloptsError):
        app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("words", commands("make"))
def test_targets_are_the_makefiles(words):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(words[:1]) <= set(targets)


def test_most_commands_are_in_the_documents():
    """So that the tests above read them at all."""
    told = {case.values[0][0] for case in commands("gpt2")}
    assert told >= {"run", "train-classifier", "train-recommender", "import", "search", "monitor", "recommend", "serve"}
    assert {case.values[0][0] for case in commands("make")} >= {"run", "test", "demo-monitor"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    for target, heading in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", path.read_text("utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        to = (path.parent / target).resolve() if target else path
        assert to.exists(), f"{path.name} links to {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", to.read_text("utf-8"), re.M)
            assert heading in map(anchor, headings), f"{path.name} links to {target}#{heading}"


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.name != "CHANGELOG.md"], ids=name_of)
def test_files_that_are_named_exist(path):
    for name in re.findall(r"`((?:gpt2|cluster|flows|tests|notebooks)/[\w./-]+)`", path.read_text("utf-8")):
        assert (ROOT / name).exists() or re.search("NAME|ROOM|FILE", name), f"{path.name} names {name}"


@pytest.mark.parametrize("floor", ["gpt2", "cluster", "flows"])
def test_the_map_has_every_room(floor):
    text = (ROOT / floor / "README.md").read_text("utf-8")
    rooms = {path.parent.name for path in (ROOT / floor).glob("*/__init__.py")} - {"presets"}
    assert {room for room in rooms if f"`{room}/`" not in text} == set()


def test_the_tables_have_every_deployment_and_preset():
    text = (ROOT / "flows" / "README.md").read_text("utf-8")
    listed = yaml.safe_load((ROOT / "flows" / "prefect.yaml").read_text())["deployments"]
    names = [deployment["name"] for deployment in listed] + preset_names()
    assert [name for name in names if f"`{name}`" not in text] == []


def test_readme_is_read_in_five_minutes():
    assert len(README.read_text("utf-8").splitlines()) <= LARGEST
