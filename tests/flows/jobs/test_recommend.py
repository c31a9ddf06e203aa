"""Recommendations with reasons as a user runs them, killed on the way and run again."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from gpt2.data.tokenizer import Tokenizer
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.tasks.task import task
from tests.conftest import WORDS
from tests.flows.test_pipeline import Home

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def models(small_data, tmp_path):
    """(recommender, writer) with random weights, saved."""
    texts = [f"This film is a {a} and {b} one." for a in WORDS for b in WORDS if a != b]
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "reviews.csv", index=False)
    tokenizer, films = Tokenizer.train(texts, 300), str(small_data["interactions"])
    shape = ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=128, vocab_size=300)
    sources = {
        "recommendation": {"source": films},
        "reasons": {
            "source": str(tmp_path / "reviews.csv"),
            "catalogue": films,
            "label_field": None,
            "test_share": 0.2,
        },
    }
    for name, own in sources.items():
        kind, examples, out = task(name), tmp_path / f"{name}-examples", tmp_path / name
        examples.mkdir(), out.mkdir()
        kind.prepare(kind.Settings(**own), Path(own["source"]), examples)
        torch.manual_seed(0)
        kind.save(kind.module(GPT2(shape), examples, tokenizer), examples, tokenizer, 64, out)
    return tmp_path / "recommendation", tmp_path / "reasons"


def test_killed_and_run_again_each_user_is_there_once_with_the_same_reasons(models, small_data, tmp_path):
    given = {"model": models[0], "writer": models[1], "top_k": 3, "written": 2}
    asked = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "flows.cli", "recommend", str(small_data["interactions"]), *asked]

    def table(said: str) -> pd.DataFrame:
        return pd.read_parquet(re.findall(r"Recommendations for 30 users.*: (\S+\.parquet)$", said, re.MULTILINE)[-1])

    (tmp_path / "one").mkdir(), (tmp_path / "other").mkdir()
    unbroken = table(Home(tmp_path / "one", []).call(command))
    home, small = Home(tmp_path / "other", []), [*command, "--set", "batch_users=1"]
    process = subprocess.Popen(
        small, cwd=tmp_path, env=home.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    scratch, deadline = "other/home/store/.partial/recommendations-*", time.monotonic() + 200
    parts = f"{scratch}/_parts/recommended/*/manifest.json"
    while len(list(tmp_path.glob(parts))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = list(tmp_path.glob(parts))
    for part in finished:  # to be known by
        facts = json.loads(part.read_text())
        part.write_text(json.dumps({**facts, "info": {**facts["info"], "rows": facts["info"]["rows"] + 1000}}))
    assert not list(tmp_path.glob("other/home/store/recommendations/*/manifest.json"))
    mine = table(home.call(small))
    [made] = tmp_path.glob("other/home/store/recommendations/*/manifest.json")
    assert json.loads(made.read_text())["info"]["rows"] == 90 + 1000 * len(finished)  # read, not made again
    assert not list(tmp_path.glob(scratch)) and len(list(made.parent.iterdir())) == 2  # parts go once all are there
    pd.testing.assert_frame_equal(mine, unbroken, rtol=1e-4)  # scores depend a little on who else is in the batch
    assert not mine.duplicated(["user", "item"]).any()
    assert (mine.groupby("user").size() == 3).all() and mine["user"].nunique() == 30
    assert ((mine["withheld"] != "") == (mine["rank"] <= 2)).all()  # a model with random weights writes nothing to show
    assert (mine["reason_kind"] == "facts").all() and mine["reason"].str.startswith("The choices of this user").all()
    again = home.call(small)
    assert "(nothing is new since then)" in again
    page = Path(re.findall(r"^Page: (\S+\.html)$", again, re.MULTILINE)[-1]).read_text()
    assert "30 users" in page and "A written reason was withheld" in page and "0 (0%) are shown" in page
    without = table(home.call([*command[:5], "--set", f"model={models[0]}", "--set", "top_k=3"]))
    assert (without["withheld"] == "").all() and without["reason"].tolist() == mine["reason"].tolist()
