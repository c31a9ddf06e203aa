"""What people read of a run in Prefect and MLflow."""

import base64
import json
import re

import matplotlib.image
import pytest

from cluster.process_env import environment
from flows.runs.prefect_artifacts import curve, slug
from flows.stages.results import cost_tags, costs, page
from gpt2.store.artifact import Artifact

ROW = {"model": "gpt2-sentiment", "version": 3, "verdict": "refused", "reasons": "worse than the champion"}
REPORT = {
    "primary": {"name": "macro_f1"},
    "metrics": {"macro_f1": 0.7},
    "baselines": {"majority": {"macro_f1": 0.2}, "TF-IDF": {"macro_f1": 0.75}},
}


def test_results_show_baselines_verdict_and_links():
    text = page([ROW], {"gpt2-sentiment": REPORT}, {"MLflow run": "http://x"})
    assert "| **refused** | macro f1 | **0.7000** | majority 0.2000, TF-IDF 0.7500 |" in text
    assert "* gpt2-sentiment v3 refused: worse than the champion" in text
    assert "/#/models/gpt2-sentiment/versions/3)" in text and "[MLflow run](http://x)" in text


def test_costs_leave_out_what_is_not_known(tmp_path):
    info = {"seconds": 12.4, "cpu_seconds": 20.0, "gpu_seconds": 0.0, "tokens": 1234, "cost": 0.5, "currency": "EUR"}
    text = costs([("pretrain", "base model", info), ("evaluate", "base report", {"seconds": 3})])
    assert "| stage | result | s | CPU s | tokens | cost |" in text
    assert "| pretrain | base model | 12 | 20 | 1,234 | 0.5 EUR |" in text
    assert "| evaluate | base report | 3 |  |  |  |" in text
    tags = cost_tags(Artifact(tmp_path, {"info": {**info, "loss": 2.0}}))
    assert tags["gpt2.cost.tokens"] == "1234" and "gpt2.cost.joules" not in tags and "gpt2.cost.loss" not in tags


def test_the_curve_is_an_image_inside_the_text(tmp_path):
    text = curve("base", [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "validation_loss": 2.1}])
    assert text.startswith("# base: loss up to step 2\n")
    [image] = re.findall(r"!\[loss\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", text)
    (tmp_path / "x.png").write_bytes(base64.b64decode(image))
    assert matplotlib.image.imread(tmp_path / "x.png").std() > 0


def test_keys_are_what_prefect_takes():
    assert slug("loss-of-My_Task 2") == "loss-of-my-task-2"


def test_the_environment_names_versions_and_hardware_and_no_place():
    found = environment()
    assert found["packages"]["torch"].startswith("2.") and found["cores"] >= 1 and found["processor"]
    text = json.dumps({k: v for k, v in found.items() if k != "packages"})
    assert "/" not in text.replace("GB/s", "") or pytest.fail(text)
