"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from cluster.kept import Kept


def checkpoint_table(found: Sequence[Kept], damages: Mapping[Path, str | None] | None = None) -> Table:
    """A row per checkpoint; with `damages`, whether each was verified."""
    table = Table()
    for column in ("training", "step", "tokens", "validation loss", "size", "workers", "ZeRO", "age", "state"):
        table.add_column(column, justify="right" if column in ("step", "tokens", "validation loss", "size") else "left")
    for kept in found:
        m, size, age = kept.manifest, f"{kept.bytes / 1e6:,.1f} MB", f"{kept.age / 60:,.0f} min"
        state = "whole" if damages is None else "DAMAGED" if damages[kept.path] else "verified"
        if m is None:
            table.add_row(kept.training, kept.path.name, "", "", size, "", "", age, "DAMAGED")
            continue
        loss = "" if m["loss"] is None else f"{m['loss']:.4f}"
        stage = str(m["header"]["placement"]["zero_stage"])
        cells = (str(m["step"]), f"{m['tokens']:,}", loss, size, str(m["world_size"]), stage, age, state)
        table.add_row(kept.training, *cells)
    return table
