"""The gate on versions of a real registry: what it decides is kept with them, and computed again."""

import json

import numpy as np
import pytest

from cluster.registry import download, promotion
from cluster.registry.versions import by_alias
from cluster.tracking.runs import client
from flows.cli import app
from flows.config import InvalidConfig, resolve
from flows.stages.gate import FOLDER, judging
from gpt2.gate import verdict_page
from gpt2.gate.config import GateConfig
from tests.cluster.small import LABELS, registered
from tests.gpt2.stored import stored

NAME = "gpt2-gated"


def measured(folder, skill, seed):
    """A stored report of made-up answers to the same 600 posts."""
    truth, generator = np.arange(600) % 2, np.random.default_rng(seed)
    predicted = np.where(generator.random(600) < skill, truth, 1 - truth)
    stored(folder, truth, predicted, np.full(600, skill), LABELS, cost={"parameters": 1000, "latency_ms": 2.0})
    return folder


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """A first, one that is as good, one that is better: decided on, in turn."""
    made, verdicts, reports = [], [], {}
    for seed, skill in enumerate((0.75, 0.755, 0.88)):
        folder = tmp_path_factory.mktemp("version")
        version = registered(NAME, folder, seed=seed)
        reports[version.version] = measured(folder / "report", skill, seed)
        made.append(version)

    def measure(version):
        folder = reports[version.version]
        content = json.loads((folder / "report.json").read_text())
        return {**content, "folder": str(folder), "version": version.version}

    for version in made:
        verdicts.append(promotion.decide(NAME, version, measure, judging(version, GateConfig())))
    return made, verdicts


def test_only_the_better_one_replaces_the_first(versions):
    made, verdicts = versions
    assert [v.promote for v in verdicts] == [True, False, True]
    assert int(by_alias(NAME, "champion").version) == 3 and int(by_alias(NAME, "previous").version) == 1
    assert "there was no champion" in verdicts[0].reasons
    assert verdicts[1].reasons[0].startswith("not shown to be better than the champion: macro_f1 0.7")
    refused = client().get_model_version(NAME, made[1].version).tags["gpt2.refused"]
    assert refused == "; ".join(verdicts[1].reasons)


def test_the_verdict_is_kept_and_told_again(versions, capsys, tmp_path):
    app(["verdict", f"models:/{NAME}/3", "--output", str(tmp_path / "verdict.html")], result_action="return_value")
    told = " ".join(capsys.readouterr().out.split())
    assert f"{NAME} version 3, beside version 1: promoted" in told and "✓ better than the champion" in told
    assert "Promoted: gpt2-gated version 3" in (tmp_path / "verdict.html").read_text()
    app(["verdict", f"models:/{NAME}@previous"], result_action="return_value")
    assert f"{NAME} version 1: promoted" in capsys.readouterr().out


def test_a_verdict_that_was_altered_is_found_out(versions, tmp_path):
    version = download.find(f"models:/{NAME}/2")
    folder = tmp_path / FOLDER
    client().download_artifacts(version.run_id, FOLDER, str(tmp_path))
    stored = json.loads((folder / verdict_page.VERDICT).read_text())
    (folder / verdict_page.VERDICT).write_text(json.dumps({**stored, "promote": True}))
    client().log_artifacts(version.run_id, str(folder), FOLDER)
    with pytest.raises(ValueError, match="does not follow from the predictions"):
        app(["verdict", f"models:/{NAME}/2"], result_action="return_value")


def test_a_version_without_a_verdict_says_so(tmp_path):
    registered("gpt2-unjudged", tmp_path)
    with pytest.raises(ValueError, match="gpt2-unjudged/1 has no verdict"):
        app(["verdict", "models:/gpt2-unjudged/1"], result_action="return_value")


def test_the_policy_is_a_part_of_the_settings():
    assert resolve("laptop", None, ["gate.probability=0.99", "gate.must_beat=[item-kNN]"]).gate == GateConfig(
        probability=0.99, must_beat=["item-kNN"]
    )
    with pytest.raises(InvalidConfig, match=r"gate\.probability = 1\.5"):
        resolve("laptop", None, ["gate.probability=1.5"])
