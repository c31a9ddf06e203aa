"""The page of recommendations: its counts beside brute force, whom it shows, and that nothing of a title runs."""

import html
import re

import pandas as pd
import pytest

from gpt2.tasks.recommendation.page import ITEMS, LATEST, USERS, Page, findings, markdown, outcomes, render

TITLES = ["Alien", "Brazil", "<script>alert(1)</script>", "Diva | *bold*", "Eraserhead", "Fargo", "Gilda", "Heat"]
CATALOGUE = pd.DataFrame({"item": [f"i{n}" for n in range(8)], "title": TITLES})
WHY = ("", "it is copied", "it has a rare word")


def page(users: int = 40, writer: bool = True, top: int = 6) -> Page:
    """Each user gets the items from his own number on; the writer is asked for the first, and every fourth is shown."""
    rows, chosen = [], {}
    for user in range(users):
        for rank in range(1, top + 1):
            item, asked = (user + rank) % 8, writer and rank == 1
            written = asked and user % 4 == 0
            why = WHY[0 if written else 1 + user % 2] if asked else ""
            reason = f"{TITLES[item]} is great." if written else f"Closest: {TITLES[(item + 1) % 8]}."
            rows.append((str(user), rank, f"i{item}", TITLES[item], 1.0, "m/1", reason))
            rows[-1] += ("generated", "w/2", "") if written else ("facts", "", why)
        chosen[str(user)] = [] if user == 3 else ["unknown", *(f"i{(user + n) % 8}" for n in range(8))]
    columns = ["user", "rank", "item", "title", "score", "version", "reason", "reason_kind", "reason_version"]
    table = pd.DataFrame(rows, columns=[*columns, "withheld"])
    return Page("models:/r/1", "ndcg at 10 0.12", "models:/w/2" if writer else "", table, pd.Series(chosen), CATALOGUE)


def panels(text: str) -> dict[str, str]:
    return dict(re.findall(r"<h3>User (\w+)<span>(.*?)</ol></div>", text))


def test_what_became_of_reasons_is_counted():
    shown = page()
    assert outcomes(shown) == [("it has a rare word", 20), ("it is shown", 10), ("it is copied", 10)]
    told = " ".join(text for _, text in findings(shown))
    assert "Of 40 reasons that models:/w/2 wrote 10 (25%) are shown" in told
    assert "8 of the catalogue's 8 items" in told and "1 of 40 users chose nothing" in told
    counts = shown.table["item"].value_counts()
    half = next(n for n in range(1, 9) if counts.head(n).sum() >= len(shown.table) / 2)
    assert (
        f"{half} of them make up half of all recommendations" in told
        and f"to {counts.iloc[0] / 40:.0%} of the users" in told
    )
    assert "Written reasons" not in render(page(writer=False)) and "All 240 reasons are facts" in render(
        page(writer=False)
    )


@pytest.mark.parametrize("writer", [True, False])
def test_users_from_all_over_with_their_choices_and_each_reasons_kind(writer):
    shown = page(writer=writer)
    text, short = render(shown), markdown(shown)
    found = panels(text)
    assert list(found) == shown.picked() and len(found) == USERS
    assert {int(user) for user in found} >= {0, 39}
    assert sum(int(user) % 4 == 0 for user in found) == USERS // 2 or not writer
    for user, own in found.items():
        mine = shown.table[shown.table["user"] == user].head(ITEMS)
        assert own.count("<li>") == ITEMS and own.count(">fact</span>") == (mine["reason_kind"] == "facts").sum()
        assert own.count(">written</span>") == (mine["reason_kind"] == "generated").sum()
        assert [why in own for why in WHY[1:]] == [why in set(mine["withheld"]) for why in WHY[1:]]
        last = [TITLES[(int(user) + n) % 8] for n in range(7, 7 - LATEST, -1)]
        assert f"after {html.escape('; '.join(last))} …" in own and "8 choices, the latest first" in own
        assert f"## User {user}\n" in short
    assert short.count("*written*") == (USERS // 2 if writer else 0) and short.count("*fact*: Closest") > 20


def test_nothing_of_a_title_runs_and_no_table_breaks():
    shown = page()
    text, short = render(shown), markdown(shown)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "<script" not in short and "Diva \\| \\*bold\\*" in short
    assert not re.search(r"(src|href)=", text)


def test_who_chose_nothing_known_or_everything_is_said():
    shown = page(users=8)
    assert "nothing that the model knows" in render(shown) and "3" in shown.picked()
    nobody = Page("m", "", "", shown.table.iloc[:0], shown.chosen, CATALOGUE)
    assert "Nobody has an item left" in render(nobody) and "Nobody has an item left" in markdown(nobody)
