"""`make demo-monitor` as a newcomer runs it: the real sample posts, and a model that can read them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cluster.home import samples
from flows.cli import app
from gpt2.monitoring.demo import DAYS, END, SURGE, TOPIC
from tests.flows.test_pipeline import ROOT, Home

pytestmark = pytest.mark.timeout(900)
DEMO = [sys.executable, "-m", "flows.cli", "monitor", "--demo"]
PLANTED = [END - pd.Timedelta(days=DAYS - day) for day in SURGE]


def champion(folder: Path) -> None:
    """In the home of this process: a champion, a tiny network with a linear model of the sample posts."""
    from cluster.process_env import configure

    configure()
    from cluster.registry.promotion import promote
    from gpt2.data.samples import resolve
    from gpt2.data.tables import read_table
    from gpt2.tasks.sentiment.ngrams import fit
    from tests.cluster.small import LABELS, model_folder, register

    table = read_table(Path(resolve("sample:posts", samples()))).dropna().drop_duplicates("text")
    table = table.sample(6000, random_state=0)
    labels = np.where(table["sentiment"] == "negative", 0, 1)
    fit(table["text"].tolist(), labels, len(LABELS))[0].save(model_folder(folder))
    version = register("gpt2-sentiment", folder)
    promote("gpt2-sentiment", version.version, "a test", force=True)


def test_what_cannot_be_is_refused_before_anything_is_written(capsys):
    with pytest.raises(ValueError, match=r"gpt2-absent.*`gpt2 run` trains models"):
        app(["monitor", "--demo", "--set", "model=models:/gpt2-absent@champion"], result_action="return_value")
    with pytest.raises(ValueError, match="--demo: replays the sample posts and reads no inbox"):
        app(["monitor", "inbox", "--demo"], result_action="return_value")
    assert capsys.readouterr().out == "" and not (samples() / "replay").exists()


@pytest.mark.slow
def test_the_planted_surge_is_told_where_it_was_planted_and_once(tmp_path):
    home = Home(tmp_path, [])
    said = home.call(DEMO, code=2)
    assert said.startswith("refused:") and "gpt2-sentiment" in said and "`gpt2 run` trains models" in said
    assert "Traceback" not in said and not (tmp_path / "home" / "samples").exists()
    program = f"from pathlib import Path; from tests.flows.test_demo import champion; champion(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=home.environment, check=True, capture_output=True)
    said = home.call(DEMO)
    [alert] = re.findall(r"^alert (.+?): .* on (\S+), for (\d+) days", said, re.MULTILINE)
    assert alert[:2] == (TOPIC, f"{PLANTED[0]:%Y-%m-%d}") and 2 <= int(alert[2]) <= len(SURGE)
    assert said.count("gpt2.sentiment.alert: ") == 1
    page = Path(re.findall(r"^Page: (.+)$", said, re.MULTILINE)[-1])
    text = page.read_text()
    assert "A replay of the sample posts." in text and "1 alert:" in text
    assert text.count('class="surge"') >= int(alert[2])
    parquet = Path(re.findall(r"Parquet: (.+)$", said, re.MULTILINE)[-1]) / "index.parquet"
    index = pd.read_parquet(parquet)
    surges = index[index["surge"]]
    assert set(surges["topic"]) == {TOPIC} and surges["window"].tolist() == PLANTED[: int(alert[2])]
    assert index[index["topic"] == "all posts"]["window"].nunique() == DAYS

    kept = {p: p.stat().st_mtime_ns for p in home.folder.glob("home/store/*/*/manifest.json")}
    again = home.call(DEMO)
    assert "0 new posts" in again and f"alert {TOPIC}: " in again and "gpt2.sentiment.alert: " not in again
    assert page.read_text() == text
    assert {p: p.stat().st_mtime_ns for p in home.folder.glob("home/store/*/*/manifest.json")} == kept
