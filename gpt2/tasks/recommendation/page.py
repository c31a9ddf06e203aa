"""The page of recommendations for analysts: some users with reasons, and statistics of items and reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from gpt2.pages import html
from gpt2.pages.markdown import flat, table
from gpt2.tasks.recommendation.catalogue import GENERATED

USERS, ITEMS, LATEST, MOST = 6, 5, 6, 10
"""Number of users on the page, of recommended items and earlier choices of each, and of rows of a table."""
SHOWN = "it is shown"


@dataclass(frozen=True)
class Page:
    """The contents of the page."""

    model: str
    """Exact address of the ranking model."""
    metric: str
    """The ranking model's quality, as `ndcg at 10 0.12`; "" if it is not known."""
    writer: str
    """Exact address of the model that writes reasons; "" without one."""
    table: pd.DataFrame
    """Recommendations as `gpt2.tasks.recommendation.recommend.recommend` returns them."""
    chosen: pd.Series
    """The ids of each user's choices in order of time, by user (text)."""
    items: pd.DataFrame
    """The model's catalogue."""

    @cached_property
    def users(self) -> list[str]:
        """Return all users with recommendations, in the table's order."""
        return self.table["user"].unique().tolist()

    @cached_property
    def titles(self) -> dict[str, str]:
        """Return the titles of the catalogue by id."""
        return dict(zip(self.items["item"], self.items["title"], strict=True))

    @cached_property
    def with_writer(self) -> pd.DataFrame:
        """Return the rows for which the writer wrote a reason, shown or withheld."""
        return self.table[(self.table["reason_kind"] == GENERATED) | (self.table["withheld"] != "")]

    def history_titles(self, user: str) -> list[str]:
        """Return the titles of a user's choices, latest first, without items that the model does not know."""
        own = self.chosen.get(user, [])
        return [self.titles[item] for item in reversed(own) if item in self.titles]

    def picked(self) -> list[str]:
        """Return the users shown, evenly over the table; half of them have a written reason if there are any."""
        written = set(self.table.loc[self.table["reason_kind"] == GENERATED, "user"])
        groups = [group for has in (True, False) if (group := [u for u in self.users if (u in written) == has])]
        places = [np.linspace(0, len(g) - 1, min(len(g), USERS // len(groups))).astype(int) for g in groups]
        picked = {group[i] for group, some in zip(groups, places, strict=True) for i in some}
        return [user for user in self.users if user in picked]


def findings(page: Page) -> list[tuple[str, str]]:
    """Return (class of a card, finding) for the findings on all users."""
    table, users = page.table, len(page.users)
    if table.empty:
        return [("note", "Nobody has an item left to recommend: all have chosen the whole catalogue.")]
    counts = table["item"].value_counts()
    half = int((counts.cumsum() < len(table) / 2).sum()) + 1
    cards = [("good", f"All {len(table):,} reasons are facts; there was no writer.")]
    if written := len(page.with_writer):
        shown = int((page.with_writer["reason_kind"] == GENERATED).sum())
        cards = [
            (
                "good" if shown else "note",
                f"Of {written:,} reasons that {page.writer} wrote {shown:,} ({shown / written:.0%}) are shown. The "
                f"checks withheld the others. These, and all other items, have facts as reasons.",
            )
        ]
    cards.append(
        (
            "",
            f"{len(counts):,} of the catalogue's {len(page.items):,} items are recommended at least once; {half:,} of "
            f"them make up half of all recommendations. The most frequent one goes to {counts.iloc[0] / users:.0%} of "
            f"the users.",
        )
    )
    if unknown := sum(not page.history_titles(user) for user in page.users):
        cards.append(
            ("note", f"{unknown:,} of {users:,} users chose nothing that the model knows: they get popular items.")
        )
    return cards


def outcomes(page: Page) -> list[tuple[str, int]]:
    """Return (outcome, count) of the written reasons, most frequent first."""
    return [(str(why), int(n)) for why, n in page.with_writer["withheld"].replace("", SHOWN).value_counts().items()]


def sentences(page: Page) -> list[tuple[str, int]]:
    """Return (written reason, number of users) of the shown ones, most frequent first."""
    shown = page.table.loc[page.table["reason_kind"] == GENERATED, "reason"].value_counts()
    return [(str(text), int(n)) for text, n in shown.head(MOST).items()]


def most(page: Page) -> list[tuple[str, int]]:
    """Return (title, number of users) of the items recommended most."""
    return [(page.titles[item], int(n)) for item, n in page.table["item"].value_counts().head(MOST).items()]


def how() -> list[str]:
    """Return the paragraphs on how to read the page."""
    return [
        "“fact”: the user's choices whose embeddings are closest to the recommended item, and the attributes that all "
        "of these share. It is true by construction, but it need not be the cause of the rank: other users' choices "
        "count too.",
        "“written”: a sentence of the writer that passed all checks. It comes from what people wrote about similar "
        "items, and may still be wrong about this one.",
        "Users are taken evenly from the table. If there are written reasons, half of the users shown have one.",
    ]


def render(page: Page) -> str:
    """Return the page as one self-contained HTML file."""
    return html.render(
        "recommendations.html",
        title="Recommendations",
        lead=f"{len(page.users):,} users · {ranked(page)}",
        findings=findings(page),
        users=[panel(page, user) for user in page.picked()],
        tables=[
            (heading, ["", what, f"of {whole:,}", ""], bars(rows, whole)) for heading, what, whole, rows in tables(page)
        ],
        how=how(),
    )


def ranked(page: Page) -> str:
    """Return the clause on the ranking model and its quality."""
    return f"ranked by {page.model}{f' ({page.metric})' if page.metric else ''}"


def panel(page: Page, user: str) -> dict[str, Any]:
    """Return a user's choices and recommendations for the template."""
    own, rows = page.history_titles(user), page.table[page.table["user"] == user].head(ITEMS)
    after = f"after {'; '.join(own[:LATEST])}" if own else "nothing that the model knows"
    return {
        "name": user,
        "choices": f"{len(own):,} choices, the latest first" if own else "no choices",
        "after": after + (" …" if len(own) > LATEST else ""),
        "recommended": [
            {"title": row.title, "written": row.reason_kind == GENERATED, "reason": why(row)}
            for row in rows.itertuples()
        ],
    }


def why(row: Any) -> str:
    """Return the reason of a recommendation, and why a written one was withheld."""
    return row.reason + (f" A written reason was withheld: {row.withheld}." if row.withheld else "")


def tables(page: Page) -> list[tuple[str, str, int, list[tuple[str, int]]]]:
    """Return (heading, what is counted, total, rows) of each table that has rows."""
    candidates = [
        ("Outcomes of the written reasons", "reasons", len(page.with_writer), outcomes(page)),
        ("Most frequent written reasons", "users", len(page.users), sentences(page)),
        ("Most recommended items", "users", len(page.users), most(page)),
    ]
    return [part for part in candidates if part[-1]]


def bars(rows: Sequence[tuple[str, int]], whole: int) -> list[list[html.Cell]]:
    """Return table rows of counts with their share of the whole, as text and as a bar."""
    return [[text, f"{n:,}", f"{n / whole:.0%}", {"bar": n / whole}] for text, n in rows]


def markdown(page: Page) -> str:
    """Return the page in short as Markdown, for Prefect."""
    lines = ["# Recommendations", "", f"{len(page.users):,} users, {ranked(page)}", ""]
    lines += [f"* {flat(text)}" for _, text in findings(page)]
    for user in page.picked():
        after = "; ".join(flat(title) for title in page.history_titles(user)[:LATEST])
        lines += ["", f"## User {flat(user)}", "", f"after {after}" if after else "nothing that the model knows", ""]
        for row in page.table[page.table["user"] == user].head(ITEMS).itertuples():
            kind = "written" if row.reason_kind == GENERATED else "fact"
            lines.append(f"{row.rank}. **{flat(row.title)}** — *{kind}*: {flat(why(row))}")
    for heading, _, _, rows in tables(page):
        lines += ["", table([heading, ""], rows, flat, right=True)]
    return "\n".join(lines) + "\n"
