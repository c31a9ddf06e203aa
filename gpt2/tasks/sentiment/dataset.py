"""A file of labelled texts to splits without leaks, with bad rows counted and weights; texts to batches."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.data.splits import SPLITS, split_by_time, split_groups
from gpt2.tasks.sentiment.config import LABEL_FIELDS, LabelledFile, fold

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

    from gpt2.data.tokenizer import Tokenizer
NGRAMS = "ngrams"
"""The column of the linear model's logits."""
LINK, HANDLE = re.compile(r"(?:https?://|www\.)\S+"), re.compile(r"(?<![\w@])@\w+")


class TextDataset:
    """Encoded texts with labels.

    A batch is `ids` (B, T), `lengths` (B,), `labels` (B,), and perhaps `weights` (B,) and `ngrams` (B, classes).
    """

    def __init__(
        self,
        rows: list[list[int]],
        labels: np.ndarray,
        weights: np.ndarray | None = None,
        ngrams: np.ndarray | None = None,
    ):
        import numpy as np

        self.rows, self.labels, self.ngrams = rows, labels, ngrams
        self.weights = None if weights is None else weights.astype(np.float32)
        self.lengths = np.array([len(row) for row in rows])

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        import torch

        from gpt2.model.heads import pad

        ids, lengths = pad([self.rows[i] for i in indices])
        batch = {"ids": ids, "lengths": lengths, "labels": torch.from_numpy(self.labels[list(indices)])}
        if self.weights is not None:
            batch["weights"] = torch.from_numpy(self.weights[list(indices)])
        if self.ngrams is not None:
            batch["ngrams"] = torch.from_numpy(self.ngrams[list(indices)])
        return batch


def labels_of(directory: Path) -> list[str]:
    """Return the labels of a saved model, in order."""
    from gpt2.store.model_files import read_task

    return read_task(directory)["labels"]


def masked(text: str) -> str:
    """Return the text with links replaced by `http` and handles by `@user` (TweetEval, Barbieri et al. 2020).

    They take a fifth of a post's tokens, and the addressee of a post does not determine its sentiment.
    """
    return HANDLE.sub("@user", LINK.sub("http", text))


def encode(tokenizer: Tokenizer, texts: Sequence[str], context: int) -> list[list[int]]:
    """Return the ids of each text, cut to `context` including the end-of-text at the end."""
    return [[*ids[: context - 1], tokenizer.end_of_text] for ids in tokenizer.encode_batch(texts)]


MAX_LABELS = 100
LEAST = 5
"""Fewest examples of a label."""
UNEVEN = 5.0
"""Ratio of the largest label's examples to the smallest's above which `balance: auto` weights the labels."""
EXPONENTS = {"none": 0.0, "sqrt": 0.5, "inverse": 1.0}


def divided(source: str | Path, settings: LabelledFile) -> tuple[dict[str, pd.DataFrame], list[str], dict[str, int]]:
    """Return (the table of each split, the labels, the counts).

    Columns are text, label (index), row (number in the source, from 1) and, if the source has them, time (UTC) and
    topic. The training table also has the weight in the loss, with mean 1, if weights differ. Near-duplicates are never
    in different splits. Raises `ValueError` if a file can't be learned from.
    """
    from gpt2.data.near_duplicates import groups

    table, labels, counts = usable(source, settings)
    group, shares = groups(table["text"].tolist()), (settings.test_share, settings.validation_share)
    if "time" in table:
        split = split_by_time(table["time"], group, *shares)
        counts["near_duplicates_removed"] = int((split == "").sum())
        kept = group[split != ""]
    else:
        split, kept = split_groups(table["text"].tolist(), group, *shares), group
    counts["near_duplicates_kept_together"] = int(len(kept) - len(set(kept.tolist())))
    weights = table.pop("weight") if "weight" in table else None
    tables: dict[str, pd.DataFrame] = {}
    for name in SPLITS:
        part = table[split == name]
        if part.empty:
            raise ValueError(f"{source}: too few rows ({len(table)}) for a {name} split; add data")
        for i, label in enumerate(labels):
            if name != "validation" and not (part["label"] == i).any():
                raise ValueError(too_few(source, label, 0, 1, f"in the {name} split"))
        if name == "train":
            given = None if weights is None else weights[split == name].to_numpy()
            part = weighted(part, labels, given, settings, source)
        tables[name] = part.reset_index(drop=True)
        counts[name] = len(part)
    return tables, labels, counts


def write(tables: Mapping[str, pd.DataFrame], labels: Sequence[str], counts: Mapping[str, int], out: Path) -> None:
    """Write SPLIT.parquet of each split, labels.json and counts.json to `out`."""
    for name, table in tables.items():
        table.to_parquet(out / f"{name}.parquet", index=False)
    (out / "labels.json").write_text(json.dumps(labels))
    (out / "counts.json").write_text(json.dumps(counts))


def usable(source: str | Path, settings: LabelledFile) -> tuple[pd.DataFrame, list[str], dict[str, int]]:
    """Return (the usable examples, each text once, with label indices; the labels; the counts so far)."""
    table, counts = read_labelled(source, settings)
    if table.empty:
        raise ValueError(
            f"{source}: none of {counts['rows']:,} rows has a text and a label; set text_field and label_field"
        )
    table["label"], labels, counts["respelled"] = indexed(table["label"], settings, source)
    table, repeated = without_duplicates(table)
    sizes = [int((table["label"] == i).sum()) for i in range(len(labels))]
    for label, size in zip(labels, sizes, strict=True):
        if size < LEAST:
            raise ValueError(too_few(source, label, size, LEAST, "in all"))
    return table, labels, counts | repeated


def too_few(source: str | Path, label: str, count: int, least: int, where: str) -> str:
    """Return the error message for a label with too few examples."""
    return (
        f"{source}: the label {label!r} has {count} examples {where}, fewer than {least}; add examples of it, merge it "
        f"with another label, or remove its rows" + (", or raise test_share" if "test" in where else "")
    )


def read_labelled(source: str | Path, settings: LabelledFile) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return (table of a file, counts of rows and of dropped rows without text, label or time).

    Its columns are text, label, row, and those of time, topic and weight that the file has.
    """
    from gpt2.data.tables import cell, missing, name_in, read_table

    named = (settings.text_field, settings.title_field, settings.label_field, *settings.optional().values())
    table = read_table(source, settings.form, {*LABEL_FIELDS, *filter(None, named)})
    label = settings.label_field or next((name for name in LABEL_FIELDS if name in table), LABEL_FIELDS[0])
    columns = {"text": settings.text_field, "label": label}
    if settings.title_field is not None:
        columns["title"] = settings.title_field
    for name, column in settings.optional().items():
        if column is not None and (column in table or column != name):  # a column that was named must be there
            columns[name] = column
    if fault := missing(table, {f"{name}_field": column for name, column in columns.items()}):
        raise ValueError(f"{source} has {fault}")
    table = table[list(columns.values())].set_axis(list(columns), axis=1)
    table["row"] = range(1, len(table) + 1)
    counts = {"rows": len(table)}
    for name in ("text", "label", *({"topic"} & columns.keys())):
        table[name] = table[name].map(name_in if name == "label" else cell)
    if "title" in table:
        both = zip(map(cell, table.pop("title")), map(cell, table["text"]), strict=True)
        table["text"] = ["\n".join(filter(None, parts)) or None for parts in both]
    if settings.label_names:
        table["label"] = renamed(table["label"], settings.label_names, source)
    table = table[table["text"].notna() & table["label"].notna()]
    counts["empty"] = counts["rows"] - len(table)
    if "time" in table:
        table = timed(table, source, columns["time"])
        counts["untimed"] = counts["rows"] - counts["empty"] - len(table)
    if "weight" in table:
        table["weight"] = checked_weights(table, source, columns["weight"])
    table.attrs = {}  # the places of the files are no part of the examples
    return table, counts


def renamed(column: pd.Series, names: Mapping[str, str], source: str | Path) -> pd.Series:
    """Return the column with its labels renamed; raise `ValueError` for a label that the file does not have."""
    present = set(column.dropna())
    if missing := [label for label in names if label not in present]:
        have = ", ".join(sorted(present)[:10])
        raise ValueError(f"{source}: label_names has {missing[0]!r}, which is the label of no row; use some of: {have}")
    return column.map(lambda label: names.get(label, label))


def timed(table: pd.DataFrame, source: str | Path, column: str) -> pd.DataFrame:
    """Return the rows that have a time (UTC); raise `ValueError` if too many have none."""
    from gpt2.data.tables import MAX_UNTIMED, times

    parsed = times(table["time"])
    none = parsed.isna()
    if none.mean() > MAX_UNTIMED:
        example = table["time"][none].iloc[0]
        raise ValueError(
            f"{source}: {none.sum():,} of {len(table):,} rows have no time that can be read in {column!r}, such as "
            f"{example!r:.60}; write ISO 8601 or seconds since 1970, or set time_field: null to split without times"
        )
    return table.assign(time=parsed)[~none]


def checked_weights(table: pd.DataFrame, source: str | Path, column: str) -> pd.Series:
    """Return the weights as numbers; raise `ValueError` for the first invalid one."""
    import numpy as np
    import pandas as pd

    from gpt2.data.tables import place

    weights = pd.to_numeric(table["weight"], errors="coerce").astype(float)
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        first = table[bad].iloc[0]
        raise ValueError(
            f"{place(source, table, first['row'])}: {column}={first['weight']!r:.60} is not a weight; give a finite "
            f"number of 0 or more, or set weight_field: null"
        )
    return weights


def indexed(column: pd.Series, settings: LabelledFile, source: str | Path) -> tuple[pd.Series, list[str], int]:
    """Return (label indices, the labels in order, the number of rows whose label was respelled).

    Labels that differ only in case or spaces are one, spelled as in most rows, or as in `labels`. Raises `ValueError`
    for unknown labels, a single label, or too many.
    """
    counts, folded = Counter(column), column.map(fold)
    rarest_first = sorted(sorted(counts, reverse=True), key=lambda form: counts[form])
    spelling = {fold(form): form for form in rarest_first}
    spelling |= {fold(label): label for label in settings.labels or ()}
    spelled = folded.map(spelling)
    labels = settings.labels or sorted(set(spelled))
    unknown = sorted(set(spelled) - set(labels))
    if unknown:
        raise ValueError(
            f"{source} has labels {unknown[:5]} that are not among labels={labels}; correct them or add them"
        )
    if spelled.nunique() < 2:
        raise ValueError(f"{source} has only the label {sorted(set(spelled))}; a classifier needs two or more")
    if len(labels) > MAX_LABELS:
        raise ValueError(f"{source} has {len(labels)} labels, more than {MAX_LABELS}; is label_field the right column?")
    place = spelled.map({label: i for i, label in enumerate(labels)}).astype("int64")
    return place, list(labels), int((spelled != column).sum())


def without_duplicates(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return (the table with each text once, counts of duplicates and of texts with conflicting labels).

    The first row of a text is kept or, if there are times, the newest, so that a copy leaves the older split.
    """
    conflicting = int((table.groupby("text")["label"].nunique() > 1).sum())
    order = table.sort_values("time", ascending=False, kind="stable") if "time" in table else table
    kept = order.drop_duplicates("text").sort_index().reset_index(drop=True)
    return kept, {"duplicates": len(table) - len(kept), "conflicting_texts": conflicting}


def weighted(
    part: pd.DataFrame, labels: Sequence[str], given: np.ndarray | None, settings: LabelledFile, source: str | Path
) -> pd.DataFrame:
    """Return the training split with the column `weight`, of mean 1, unless all weights are equal."""
    import numpy as np

    truth = part["label"].to_numpy()
    sizes = np.bincount(truth, minlength=len(labels))
    balance = settings.balance
    if balance == "auto":
        balance = "sqrt" if sizes.max() > UNEVEN * sizes.min() else "none"
    if given is None and balance == "none":
        return part
    weights = (len(part) / (len(labels) * sizes[truth])) ** EXPONENTS[balance]
    if given is not None:
        weights = weights * given
        for i, label in enumerate(labels):
            if not given[truth == i].any():
                raise ValueError(f"{source}: all training examples of the label {label!r} have weight 0; raise some")
    return part.assign(weight=weights / weights.mean())
