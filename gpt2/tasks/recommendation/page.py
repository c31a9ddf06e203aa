"""What an analyst looks at: to whom what is recommended after what, and why; what became of the reasons."""

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
"""Users on the page, items and earlier choices of each, and lines of a table."""
SHOWN = "it is shown"


@dataclass(frozen=True)
class Page:
    """Everything on the page."""

    model: str
    """The exact address of the one that ranks."""
    metric: str
    """How good it is, as `ndcg at 10 0.12`, "" where that is not known."""
    writer: str
    """The exact address of the one that writes reasons, "" without one."""
    table: pd.DataFrame
    """As `gpt2.tasks.recommendation.recommend.recommend` has it."""
    chosen: pd.Series
    """Of each user (text) the ids of what he chose, in order of time."""
    items: pd.DataFrame
    """The model's catalogue."""

    @cached_property
    def users(self) -> list[str]:
        return self.table["user"].unique().tolist()

    @cached_property
    def titles(self) -> dict[str, str]:
        """Of the catalogue, by id."""
        return dict(zip(self.items["item"], self.items["title"], strict=True))

    @cached_property
    def asked(self) -> pd.DataFrame:
        """The rows for which the writer wrote."""
        return self.table[(self.table["reason_kind"] == GENERATED) | (self.table["withheld"] != "")]

    def told(self, user: str) -> list[str]:
        """Titles of what a user chose, the latest first; what the model does not know is left out."""
        own = self.chosen.get(user, [])
        return [self.titles[item] for item in reversed(own) if item in self.titles]

    def picked(self) -> list[str]:
        """Users for the page, from all over the table: half of them with a written reason, where some have one."""
        written = set(self.table.loc[self.table["reason_kind"] == GENERATED, "user"])
        groups = [group for has in (True, False) if (group := [u for u in self.users if (u in written) == has])]
        places = [np.linspace(0, len(g) - 1, min(len(g), USERS // len(groups))).astype(int) for g in groups]
        found = {group[i] for group, some in zip(groups, places, strict=True) for i in some}
        return [user for user in self.users if user in found]


def findings(page: Page) -> list[tuple[str, str]]:
    """(class of a card, what there is to know before one looks at single users)."""
    table, users = page.table, len(page.users)
    if table.empty:
        return [("note", "Nobody has an item left to recommend: all have chosen the whole catalogue.")]
    counts = table["item"].value_counts()
    half = int((counts.cumsum() < len(table) / 2).sum()) + 1
    told = [("good", f"All {len(table):,} reasons are facts; no writer was asked.")]
    if len(page.asked):
        shown = int((page.asked["reason_kind"] == GENERATED).sum())
        told = [
            (
                "good" if shown else "note",
                f"Of {len(page.asked):,} reasons that {page.writer} wrote {shown:,} ({shown / len(page.asked):.0%}) "
                f"are shown. The checks withheld the others; in their place, and for all other items, stand facts.",
            )
        ]
    told.append(
        (
            "",
            f"{len(counts):,} of the catalogue's {len(page.items):,} items are recommended to somebody; {half:,} make "
            f"half of all recommendations. The most frequent goes to {counts.iloc[0] / users:.0%} of the users.",
        )
    )
    if unknown := sum(not page.told(user) for user in page.users):
        told.append(
            ("note", f"{unknown:,} of {users:,} users chose nothing that the model knows: theirs is what is popular.")
        )
    return told


def outcomes(page: Page) -> list[tuple[str, int]]:
    """What became of written reasons, the most frequent first."""
    return [(str(why), int(n)) for why, n in page.asked["withheld"].replace("", SHOWN).value_counts().items()]


def sentences(page: Page) -> list[tuple[str, int]]:
    """The written reasons that are shown, the most frequent first, and to how many users each."""
    shown = page.table.loc[page.table["reason_kind"] == GENERATED, "reason"].value_counts()
    return [(str(text), int(n)) for text, n in shown.head(MOST).items()]


def most(page: Page) -> list[tuple[str, int]]:
    """What is recommended most, and to how many users."""
    return [(page.titles[item], int(n)) for item, n in page.table["item"].value_counts().head(MOST).items()]


def how() -> list[str]:
    """How to read it."""
    return [
        "“fact”: of what the user chose, the items whose embeddings are closest to the recommended one, and the "
        "attributes that all of these have. It is true by construction, and no more than that: what is close for the "
        "model need not be why it ranks high, as what others chose counts too.",
        "“written”: a sentence of the writer that passed all checks. It is what people wrote of items like this one, "
        "and may still be wrong of it.",
        "Users are taken from all over the table; where there are written reasons, half of those shown have one.",
    ]


def render(page: Page) -> str:
    """One HTML file that needs no other."""
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
    """By which model, and how good that is."""
    return f"ranked by {page.model}{f' ({page.metric})' if page.metric else ''}"


def panel(page: Page, user: str) -> dict[str, Any]:
    """A user's choices, and what is recommended after them, for the template."""
    own, rows = page.told(user), page.table[page.table["user"] == user].head(ITEMS)
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
    """The reason of a recommendation, and why a written one was withheld."""
    return row.reason + (f" A written reason was withheld: {row.withheld}." if row.withheld else "")


def tables(page: Page) -> list[tuple[str, str, int, list[tuple[str, int]]]]:
    """(heading, what is counted, how many that are in all, rows) of each table that has rows."""
    found = [
        ("What became of the written reasons", "reasons", len(page.asked), outcomes(page)),
        ("Written reasons, the most frequent", "users", len(page.users), sentences(page)),
        ("Recommended most", "users", len(page.users), most(page)),
    ]
    return [part for part in found if part[-1]]


def bars(rows: Sequence[tuple[str, int]], whole: int) -> list[list[html.Cell]]:
    """Counts with their share of the whole, also as a bar."""
    return [[text, f"{n:,}", f"{n / whole:.0%}", {"bar": n / whole}] for text, n in rows]


def markdown(page: Page) -> str:
    """The page in short, for Prefect."""
    lines = ["# Recommendations", "", f"{len(page.users):,} users, {ranked(page)}", ""]
    lines += [f"* {flat(text)}" for _, text in findings(page)]
    for user in page.picked():
        after = "; ".join(flat(title) for title in page.told(user)[:LATEST])
        lines += ["", f"## User {flat(user)}", "", f"after {after}" if after else "nothing that the model knows", ""]
        for row in page.table[page.table["user"] == user].head(ITEMS).itertuples():
            kind = "written" if row.reason_kind == GENERATED else "fact"
            lines.append(f"{row.rank}. **{flat(row.title)}** — *{kind}*: {flat(why(row))}")
    for heading, _, _, rows in tables(page):
        lines += ["", table([heading, ""], rows, flat, right=True)]
    return "\n".join(lines) + "\n"
