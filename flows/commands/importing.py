"""The command `gpt2 import`: published weights in, a version of the base model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands.console import Changes, out


def import_weights(
    source: str,
    *,
    revision: str | None = None,
    champion: Annotated[bool, Parameter(negative="")] = False,
    config: Path | None = None,
    set_: Changes = None,
):
    """Make published weights a version of gpt2-base, to fine-tune or to go on from with text of your own.

    Nothing that comes with them is executed. The same files again make no second version.

    Example: gpt2 import openai-community/gpt2 --champion

    Args:
        source: a directory with config.json, weights and tokenizer, or the id of a model on the Hugging Face hub.
        revision: of a model on the hub: the commit, branch or tag.
        champion: make it the champion, where the gate did not, or had no text to measure it on.
        config: a YAML file of settings (`flows.published`).
        set_: a setting, as in online=false (the hub's local cache only); may be given several times.
    """
    from flows.config import settings
    from flows.published import NAME, ImportConfig, ImportPlan

    given = {"source": source, "revision": revision, "champion": champion or None}
    chosen = settings(ImportConfig, given, config, set_ or ())
    found = ImportPlan.of(chosen)
    size = f"{found.model.n_parameters / 1e6:,.1f}M parameters, {found.model.vocab_size:,} token ids"
    out.print(f"{found.source}: a GPT-2 of {size}, {found.model.n_positions:,} positions", markup=False)
    row = found.registered()
    if row:
        out.print("Nothing to do: it was imported before.")
    else:
        from flows.commands.jobs import prefect

        out.print("Starting Prefect and MLflow ...")
        with prefect():
            from flows.importing import import_weights as run

            result = run(chosen)
        if result is None:  # another run is at it, which it has said
            return
        [row] = result["registered"]
    from cluster import registry

    at = registry.by_alias(NAME, registry.CHAMPION)
    mine = at is not None and int(at.version) == row["version"]
    why = f": {row['reasons']}" if row["reasons"] else f"; make it the champion: {chosen.command} --champion"
    out.print(f"{NAME} version {row['version']} {row['verdict']}{why}", markup=False)
    base = "" if mine else f" --set base=models:/{NAME}/{row['version']}"
    out.print(f"Fine-tune it:           gpt2 train-classifier FILE{base}", markup=False)
    if mine:
        n = found.model.n_positions
        same = f"--set model.n_positions={n} --set pretrain.context={n}"
        out.print(f"Go on with your text:   gpt2 run refresh --set 'corpus.sources=[FOLDER]' {same}", markup=False)
