"""Evaluation on the cluster's workers: a model's directory and its held-out examples in, a report's directory out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.connect import spread
from gpt2.artifact import Artifact
from gpt2.jobs import MODEL, TokenFiles
from gpt2.journal import JOURNAL


def token_files(tokens: Artifact) -> TokenFiles:
    """The shards of a tokens artifact, as absolute paths."""
    listing = json.loads(tokens.file("tokens.json").read_text())
    root = tokens.path.parent.parent
    splits = {split: [str(root / p) for p in listing[split]] for split in ("train", "validation")}
    return TokenFiles(dtype=listing["dtype"], **splits)


def evaluate_base(model: Path, tokens: Artifact, context: int, out: Path) -> dict[str, Any]:
    """Evaluate a pretrained model on the validation split."""
    arguments = (model, token_files(tokens), dict(tokens.info), context, out)
    return next(iter(spread(_evaluate_base, [arguments])))


def evaluate_task(name: str, model: Path, examples: Artifact, out: Path) -> dict[str, Any]:
    """Evaluate a task's model on the test split."""
    return next(iter(spread(_evaluate_task, [(name, model, examples.path, out)])))


def _evaluate_base(path: Path, files: TokenFiles, counts: dict[str, Any], context: int, out: Path) -> dict[str, Any]:
    from gpt2 import language_model, report
    from gpt2.jobs import token_dataset
    from gpt2.journal import read_journal

    content = language_model.evaluate(
        path / MODEL,
        token_dataset(files, "validation", context),
        token_dataset(files, "train", context),
        counts["validation_bytes"] / max(1, counts["validation_tokens"]),
        out,
    )
    return report.write({**content, "curve": read_journal(path / JOURNAL)}, out)


def _evaluate_task(name: str, path: Path, examples: Path, out: Path) -> dict[str, Any]:
    from gpt2 import report
    from gpt2.journal import read_journal
    from gpt2.task import task

    content = task(name).evaluate(path / MODEL, examples, out)
    return report.write({**content, "curve": read_journal(path / JOURNAL)}, out)
