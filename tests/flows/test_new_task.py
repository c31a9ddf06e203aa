"""A new task is one new file, or one folder, and nothing else: the example of gpt2/README.md, in a copy of the code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_documents import blocks

ROOT = Path(__file__).parents[2]
NEW = ("pairs", "twins")  # the file, the folder
TRAIN = "{steps: 3, epochs: 50, batch_size: 8, micro_batch_size: 4, context: 64, eval_samples: 8, checkpoint_every: 3}"


class Copy:
    """The code with two tasks more, and a home of its own."""

    def __init__(self, folder: Path, changes: list[str]):
        self.folder, self.tasks = folder, folder / "gpt2" / "tasks"
        for floor in ("gpt2", "cluster", "flows"):
            shutil.copytree(ROOT / floor, folder / floor, ignore=shutil.ignore_patterns("__pycache__"))
        [text] = [text for text in blocks(ROOT / "gpt2" / "README.md", "python") if "TASK = " in text]
        (self.tasks / "pairs.py").write_text(text)
        self.add_folder(text.replace('"pairs"', '"twins"'))
        rows = [f"we are {i % 7} late,{'we are' if i % 2 else 'a crew of'} {i % 7},{i % 2}" for i in range(60)]
        (folder / "pairs.csv").write_text("\n".join(["first,second,same", *rows]) + "\n")
        self.changes = [*changes, *(f"tasks.{name}.enabled=false" for name in ("sentiment", "recommendation"))]
        for name in NEW:
            self.changes += [f"tasks.{name}.enabled=true", f"tasks.{name}.source={folder / 'pairs.csv'}"]
            self.changes.append(f"tasks.{name}.train={TRAIN}")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_TRACKING", "RAY_A"))}
        self.environment = {**kept, "GPT2_HOME": str(folder / "home"), "PYTHONPATH": str(folder), "COLUMNS": "200"}

    def add_folder(self, text: str) -> None:
        """The same task as a folder: its settings, and the rest."""
        start, end = text.index("class PairsSettings"), text.index("class Pairs(Task)")
        head = "from gpt2.tasks.config import TaskSettings\nfrom gpt2.training.config import TrainConfig\n"
        rest = text[:start] + "from gpt2.tasks.twins.config import PairsSettings\n\n\n" + text[end:]
        files = {"config": f"{head}\n\n{text[start:end]}", "task": rest}
        files["__init__"] = "from gpt2.tasks.twins.task import TASK as TASK\n"
        (self.tasks / "twins").mkdir()
        for name, content in files.items():
            (self.tasks / "twins" / f"{name}.py").write_text(content)

    def call(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=self.environment,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout

    def json(self, program: str) -> dict:
        return json.loads(self.call("-c", program, *self.changes).splitlines()[-1])


@pytest.fixture(scope="module")
def copy(tmp_path_factory, small_changes):
    return Copy(tmp_path_factory.mktemp("copy"), small_changes)


KNOWN = """
import json, sys
from prefect.utilities.callables import parameter_schema
from cluster.process_env import configure
configure()
from flows.config import resolve
from flows.jobs.run import run
from flows.plan import make_plan
config = resolve("smoke", None, sys.argv[1:])
plan = make_plan(config)
schema = parameter_schema(run).model_dump()["definitions"]
print(json.dumps({
    "settings": {name: settings.model_dump(mode="json") for name, settings in config.task_settings().items()},
    "form": [n for part in ("Files", "Main") for n in schema[part]["properties"]],
    "plan": {name: [keys.data.code, keys.model.id, keys.registered] for name, keys in plan.tasks.items()},
}))
"""


def test_a_new_task_has_settings_a_form_and_keys(copy):
    known = copy.json(KNOWN)
    assert set(known["settings"]) == set(known["plan"]) == set(NEW)
    for name, own in zip(NEW, ("gpt2.tasks.pairs", "gpt2.tasks.twins.task"), strict=True):
        assert known["settings"][name]["train"]["steps"] == 3
        assert {f"{name}_enabled", f"{name}_source"} <= set(known["form"])
        code, _, registered = known["plan"][name]
        assert own in code and registered == f"gpt2-{name}"
    assert known["plan"]["pairs"][1] != known["plan"]["twins"][1]


SMALL = """
import json, sys
from pathlib import Path
from cluster.process_env import configure
configure()
from cluster.home import store
from cluster.tracking.runs import Run
from flows.config import resolve
from flows.plan import make_plan
from flows.stages.registration import entered, measured_tags
from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation import report
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.tasks.task import task
config = resolve("smoke", None, sys.argv[1:])
tokenizer = Tokenizer.train(["we are late"] * 20, 262)
base = ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=262)
for name, keys in make_plan(config).tasks.items():
    kind, settings = task(name), config.task_settings()[name]
    examples = store().make(keys.data, lambda out: kind.prepare(settings, Path(settings.source), out))
    def build(out):
        (out / "model").mkdir()
        module = kind.module(GPT2(base), examples.path, tokenizer)
        kind.save(module, examples.path, tokenizer, 64, out / "model")
        return {}
    model = store().make(keys.model, build)
    def measure(out):
        return report.write(kind.evaluate(model.path / "model", examples.path, out), out)["metrics"]
    written = json.loads(store().make(keys.report, measure).file("report.json").read_text())
    entered(name, keys.registered, model, Run.open(name, {}), measured_tags(written), {})
"""


REGISTERED = """
import json
from cluster.process_env import configure
configure()
import gpt2
from cluster.tracking.runs import client
found = {}
for name in ("pairs", "twins"):
    [version] = client().search_model_versions(f"name='gpt2-{name}'")
    model = gpt2.load(f"models:/gpt2-{name}/{version.version}")
    [same] = model.predict([{"first": "we are 1 late", "second": "we are 1"}])["same"]
    found[name] = {"task": model.task, "same": float(same)}
print(json.dumps(found))
"""


def check_reports_and_registry(copy):
    """Each task has a report, and a version that answers."""
    registered = copy.json(REGISTERED)
    for name in NEW:
        [report] = copy.folder.glob(f"home/store/{name}-report/*/report.json")
        assert json.loads(report.read_text())["task"] == registered[name]["task"] == name
        assert 0 <= registered[name]["same"] <= 1


def test_a_new_task_is_evaluated_and_registered(copy):
    """With a model that learned nothing."""
    copy.call("-c", SMALL, *copy.changes)
    check_reports_and_registry(copy)


@pytest.mark.slow
def test_a_new_task_gets_a_report_and_a_registry_entry_from_a_run(tmp_path, small_changes):
    """Two fine-tunings on Ray."""
    copy = Copy(tmp_path, small_changes)
    items = [word for change in copy.changes for word in ("--set", change)]
    copy.call("-m", "flows.cli", "run", "--preset", "smoke", *items)
    check_reports_and_registry(copy)
