"""Pages for people: nothing of a user's data is markup, and all pages look alike."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from jinja2 import UndefinedError

from gpt2.evaluation import report
from gpt2.gate import verdict_page as gate_verdict_page
from gpt2.gate.config import GateConfig
from gpt2.monitoring import page as monitoring_page
from gpt2.monitoring.alerts import Drift
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.index import Alert, aggregate
from gpt2.pages import html
from gpt2.pages.markdown import flat, table
from gpt2.store.code import code_version
from gpt2.tasks.recommendation import page as recommendation_page
from tests.gpt2.stored import stored

EVIL = "<script>alert(1)</script>&\"'"


def report_page(out):
    content = {
        "task": "sentiment",
        "title": EVIL,
        "primary": {"name": "macro_f1", "higher_is_better": True},
        "floor": "majority",
        "metrics": {"macro_f1": 0.7},
        "baselines": {"majority": {"macro_f1": 0.2}, EVIL: {"macro_f1": 0.5}},
        "counts": {EVIL: 1200},
        "samples": {EVIL: [EVIL]},
        "figures": [],
        "remarks": [EVIL],
        "tables": {EVIL: {"header": [EVIL, "cases"], "rows": [[EVIL, 5]]}},
    }
    out.mkdir()
    report.write(content, out)
    return (out / "report.html").read_text()


def verdict_page(out):
    truth, labels = np.arange(300) % 3, ["a", "b", EVIL]
    for name, wrong in (("candidate", 10), ("champion", 40)):
        predicted = np.where(np.arange(300) < wrong, (truth + 1) % 3, truth)
        stored(out.with_name(name), truth, predicted, np.full(300, 0.8), labels, title=EVIL)
    facts = {"model": EVIL, "version": EVIL, "champion": EVIL}
    gate_verdict_page.write(out, out.with_name("candidate"), out.with_name("champion"), GateConfig(), facts)
    return (out / "verdict.html").read_text()


def monitor(out):
    times = pd.date_range("2026-01-01", periods=900, freq="h", tz="UTC")
    posts = pd.DataFrame({"time": times, "topics": [[EVIL]] * 900, "label": ["negative", "positive", "neutral"] * 300})
    posts = posts.assign(confidence=0.9, version=EVIL, cut=False)
    config = MonitorConfig(window="day", name="made-up", min_posts=5)
    index = aggregate(posts, config, times[-1].ceil("D"), EVIL)
    alert = Alert(EVIL, times[0].floor("D"), 1, 20, 18, 0.2, 1e-6)
    drift = [Drift("tokens", 0.4, 10, 20, ((0.5, 0.1), (0.5, 0.9)))]
    return monitoring_page.render(
        monitoring_page.Page(config, EVIL, EVIL, index, [alert], [[EVIL]], drift, 900, [EVIL], EVIL)
    )


def recommendations(out):
    rows = [(EVIL, 1, "i0", EVIL, 1.0, "m", EVIL, kind, "w", EVIL) for kind in ("facts", "generated")]
    columns = ["user", "rank", "item", "title", "score", "version"]
    columns += ["reason", "reason_kind", "reason_version", "withheld"]
    catalogue = pd.DataFrame({"item": ["i0"], "title": [EVIL]})
    chosen = pd.Series({EVIL: ["i0"]})
    return recommendation_page.render(
        recommendation_page.Page(EVIL, EVIL, EVIL, pd.DataFrame(rows, columns=columns), chosen, catalogue)
    )


PAGES = {"report": report_page, "verdict": verdict_page, "monitor": monitor, "recommendations": recommendations}


@pytest.fixture(scope="module", params=PAGES)
def page(request, tmp_path_factory):
    return PAGES[request.param](tmp_path_factory.mktemp("page") / "out")


class Read(HTMLParser):
    """The tags of a page, the names of their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_nothing_of_a_users_data_is_markup(page):
    read = Read(page)
    assert "<script" not in page and "script" not in read.tags and EVIL in read.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&#34;&#39;" in page and "&amp;lt;" not in page  # escaped once
    assert not {name for name in read.attributes if name.startswith("on")}
    assert read.attributes <= {
        "lang", "charset", "name", "content", "class", "style", "alt", "src", "xmlns", "viewbox", "points",
        "x", "y", "dy", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height", "text-anchor",
    }  # fmt: skip


def test_all_pages_share_the_style_with_a_dark_mode(page):
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style == "\n" + "".join((html.TEMPLATES / name).read_text() for name in ("style.css", "curve.css"))
    assert "prefers-color-scheme:dark" in style and '<meta name="viewport"' in page
    assert not re.search(r"""(src|href)=["'](?!data:image/)|url\(|@import""", page)


def test_a_template_gets_all_that_it_shows():
    with pytest.raises(UndefinedError, match="title"):
        html.render("report.html")


def test_a_template_is_code_by_all_its_bytes():
    names = [f"gpt2.pages:templates/{name}" for name in ("report.html.j2", "monitor.html.j2")]
    assert len({code_version(*names), code_version(*names[::-1]), code_version(names[0])}) == 3
    with pytest.raises(FileNotFoundError):
        code_version("gpt2.pages:templates/absent.j2")


def test_tables_keep_their_cells():
    assert table(["a"], [["one\ntwo | <b>"]]) == "| a |\n|---|\n| one two \\| &lt;b> |"
    assert table(["*a*", "n"], [["_b_", 0.5]], flat, right=True).splitlines() == [
        "| \\*a\\* | n |", "|---|---:|", "| \\_b\\_ | 0.5000 |"
    ]  # fmt: skip
