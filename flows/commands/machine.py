"""`gpt2 checkpoints`, `automations`, `doctor` and `clean`: commands on this machine's state."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.markup import escape

from flows.commands.console import err
from flows.commands.console import out as lines
from flows.commands.console import tables as out

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.checkpoints.files import Kept
    from cluster.services.doctor import Result


def checkpoint_table(checkpoints: Sequence[Kept], damages: Mapping[Path, str | None] | None = None) -> Table:
    """Return a table with a row per checkpoint; with `damages`, it shows whether each is intact."""
    from rich.table import Table

    table = Table()
    for column in ("training", "step", "tokens", "validation loss", "size", "workers", "ZeRO", "age", "state"):
        table.add_column(column, justify="right" if column in ("step", "tokens", "validation loss", "size") else "left")
    for kept in checkpoints:
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


def list_checkpoints():
    """List the checkpoints: step, tokens seen, validation loss, size, workers.

    Example: gpt2 checkpoints
    """
    from cluster.checkpoints.files import find

    checkpoints = list(find())
    if not checkpoints:
        out.print("There are no checkpoints: no training is under way or was interrupted.")
        return
    out.print(checkpoint_table(checkpoints))


def verify_checkpoints():
    """Verify every byte of the checkpoints; exit with 1 if one is damaged.

    Example: gpt2 checkpoints verify
    """
    from cluster.checkpoints.files import find

    checkpoints = list(find())
    damages = {kept.path: kept.damage() for kept in checkpoints}
    out.print(checkpoint_table(checkpoints, damages))
    for damage in filter(None, damages.values()):
        err.print(damage, highlight=False, markup=False, soft_wrap=True)
    if any(damages.values()):
        sys.exit(1)


def export_checkpoint(path: Path, output: Path):
    """Write the model of a checkpoint in a format that `transformers` and `gpt2` read.

    Example: gpt2 checkpoints export .gpt2/store/.partial/base-0123/_checkpoints/step-00000100 model/

    Args:
        path: the checkpoint's folder.
        output: a new folder.
    """
    from cluster.checkpoints.files import export

    export(path, output)
    out.print(f"The model of {path.name} is in {output}", highlight=False)


def automations(where: str):
    """Tell people or a program when a model is promoted or refused, a training restarts or exceeds its budget, or
    sentiment changes.

    Example: gpt2 automations https://hooks.slack.com/services/T0/B0/x

    Args:
        where: a webhook of Slack or Teams, any other address, which gets JSON, or a notification block of Prefect as
            TYPE/NAME, such as sendgrid-email/ops.
    """
    from flows.server import create

    for automation in create(where):
        out.print(automation.name, highlight=False)


def doctor():
    """Check this machine, and print a remedy for each problem.

    Example: gpt2 doctor
    """
    from cluster.services.doctor import check

    results = check()
    if all(r.state != "failed" for r in results if r.name == "MLflow"):
        results.append(champions())
    for r in results:
        mark = {"ok": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "failed": "[red]failed[/] "}[r.state]
        lines.print(f"{mark} [bold]{r.name}[/]: {escape(r.found)}{f'; {escape(r.remedy)}' if r.remedy else ''}")
    if any(r.state == "failed" for r in results):
        sys.exit(1)


def champions() -> Result:
    """Check that the files of each registered champion are there; none is read."""
    from cluster.home import home, tracking_uri
    from cluster.services.doctor import Result

    local = tracking_uri().startswith("sqlite:")
    if local and not (home() / "mlflow").exists():
        return Result("champions", "ok", "none yet")
    from cluster.registry.versions import unusable_champions

    unusable = unusable_champions()
    return Result("champions", "failed" if unusable else "ok", f"{len(unusable)} can't be loaded", "\n".join(unusable))


def clean(*, yes: Annotated[bool, Parameter(negative="")] = False):
    """Remove the local state in GPT2_HOME, and nothing else: artifacts, runs, registered models, samples.

    Example: gpt2 clean --yes

    Args:
        yes: remove it without asking.
    """
    from cluster.home import clean as remove
    from cluster.home import home

    if not yes and input(f"Remove {home()} with all models and runs in it? [y/N] ").strip().lower() != "y":
        out.print("Nothing was removed.")
        return
    out.print(f"Removed {remove()}", highlight=False)
