"""Reports: complete or refused, plain about defeats, and safe to open."""

import copy
import json

import pytest

from gpt2.evaluation import report

GOOD = {
    "task": "sentiment",
    "title": "Sentiment <of> posts",
    "primary": {"name": "macro_f1", "higher_is_better": True},
    "floor": "majority",
    "metrics": {"macro_f1": 0.7, "accuracy": 0.75, "support_a": 1200},
    "baselines": {"majority": {"macro_f1": 0.2, "accuracy": 0.4}, "TF-IDF": {"macro_f1": 0.74}},
    "counts": {"test": 1200},
    "samples": {"Mistakes": ["a | b <script>alert(1)</script>\nsecond line"]},
    "figures": [],
}
CURVE = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "validation_loss": 2.1}]


@pytest.fixture
def good():
    return copy.deepcopy(GOOD)


def test_written_whole(good, tmp_path):
    written = report.write({**good, "curve": CURVE}, tmp_path)
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text) == written
    assert list(json.loads(text)) == sorted(written)
    files = [figure["file"] for figure in written["figures"]]
    assert files == ["baselines.png", "curve.png"]
    assert all((tmp_path / file).read_bytes().startswith(b"\x89PNG") for file in files)


def test_a_defeat_is_said_plainly(good, tmp_path):
    notes = report.write(good, tmp_path)["notes"]
    assert "is better than the baseline majority" in notes[0]
    assert "LOSES to the baseline TF-IDF" in notes[1]
    assert "LOSES" in (tmp_path / "report.md").read_text()
    assert 'class="note"' in (tmp_path / "report.html").read_text()


def test_lower_may_be_better(good, tmp_path):
    good["primary"]["higher_is_better"] = False
    notes = report.write(good, tmp_path)["notes"]
    assert "LOSES to the baseline majority" in notes[0] and "is better than" in notes[1]


def test_a_tie_is_no_win(good, tmp_path):
    good["baselines"]["majority"]["macro_f1"] = 0.7
    assert "LOSES" in report.write(good, tmp_path)["notes"][0]


def test_a_win_that_may_be_chance_is_not_called_one(good, tmp_path):
    for interval, sure in (([0.4, 0.6], True), ([-0.1, 0.6], False)):
        difference = {"value": 0.5, "interval": interval, "probability": 0.9}
        told = report.write({**good, "differences": {"majority": {"macro_f1": difference}}}, tmp_path)["notes"][0]
        assert ("is better than" in told) == sure and ("is NOT SURELY better than" in told) != sure
        assert ('class="good"' in (tmp_path / "report.html").read_text()) == sure


def test_the_page_is_self_contained_and_escaped(good, tmp_path):
    report.write({**good, "curve": CURVE}, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "<script>" not in page and "&lt;script&gt;" in page and "Sentiment &lt;of&gt; posts" in page
    assert "http://" not in page and "https://" not in page


def test_markdown_is_one_table(good, tmp_path):
    report.write(good, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert all(line.strip("|").count("|") in (2, 3) for line in table)
    assert "| support a | 1,200 |  |  |" in table
    assert "* a \\| b &lt;script>alert(1)&lt;/script> second line" in lines


@pytest.mark.parametrize("part", report.REQUIRED)
def test_a_missing_part_is_refused(good, tmp_path, part):
    del good[part]
    with pytest.raises(ValueError, match=part):
        report.write(good, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(good, tmp_path, value):
    good["metrics"]["macro_f1"] = value
    with pytest.raises(ValueError, match="macro_f1"):
        report.write(good, tmp_path)
    good["metrics"] = {"macro_f1": 0.5, "accuracy": value}
    with pytest.raises(ValueError):
        report.write(good, tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_intervals_parts_and_tables_are_shown(good, tmp_path):
    good |= {
        "unit": "post",
        "units": 1200,
        "intervals": {"model": {"macro_f1": [0.68, 0.72]}, "TF-IDF": {"macro_f1": [0.71, 0.77]}},
        "differences": {"TF-IDF": {"macro_f1": {"value": -0.04, "interval": [-0.06, -0.02], "probability": 0.001}}},
        "slice_metric": "accuracy",
        "slices": [
            {"slice": "topic: @<b>", "units": 60, "value": 0.5, "interval": [0.4, 0.6], "baselines": {"TF-IDF": 0.7}}
        ],
        "tables": {"Behaviour": {"header": ["what", "cases"], "rows": [["'not' | turns it", 50]]}},
        "cost": {"parameters": 1000, "latency_ms": 2.5},
    }
    good["metrics"]["perplexity"], good["remarks"] = 373.42841, ["Without it macro_f1 is 0.1."]
    good["intervals"]["model"]["perplexity"] = [356.9491, 1390.8561]
    good["tables"]["Found"] = {"header": ["as"], "rows": [["13 words in a row"]]}
    written = report.write(good, tmp_path)
    assert [f["file"] for f in written["figures"]] == ["baselines.png", "slices.png"]
    assert "0.7000 against 0.7400, a difference of -0.0400 (95 % interval -0.0600 to -0.0200)." in written["notes"][1]
    text = (tmp_path / "report.md").read_text()
    assert "| macro f1 | 0.7000 [0.680, 0.720] | 0.2000 | 0.7400 [0.710, 0.770] |" in text
    assert "| topic: @&lt;b> | 60 | 0.5000 [0.400, 0.600] | 0.7000 |" in text
    assert "| 'not' \\| turns it | 50 |" in text and "1,000 parameters, 2.5 ms for an answer" in text
    page = (tmp_path / "report.html").read_text()
    assert "topic: @&lt;b&gt;" in page and page.index("baselines") < page.index("Parts of the examples")
    assert "| perplexity | 373.4 [356.9, 1,390.9] |" in text and "on macro f1: " in written["notes"][0]
    page = (tmp_path / "report.html").read_text()
    assert page.index("by part of the examples") < page.index("Without it macro f1 is 0.1.") < page.index("<table>")
    assert '<td class="text">13 words in a row</td>' in page and "<td>0.7000 [0.680,\xa00.720]</td>" in page
