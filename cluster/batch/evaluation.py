"""Evaluation on the cluster's workers: a model's directory and its held-out examples in, a report's directory out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.connect import spread
from cluster.registry.lineage import ancestors, canaries_in, published, wanted
from gpt2.data.config import CanaryConfig
from gpt2.evaluation import contamination
from gpt2.store.artifact import Artifact, DamagedArtifact, Store, read_manifest
from gpt2.store.model_files import MODEL
from gpt2.tasks.task import task
from gpt2.training.journal import JOURNAL
from gpt2.training_job import TokenFiles


def token_files(tokens: Artifact) -> TokenFiles:
    """Return the shards of a tokens artifact as absolute paths, those of its parents first.

    Raises `DamagedArtifact` if a parent or a shard is missing.
    """
    root = Store(tokens.path.parent.parent)
    listings = [json.loads(t.file("tokens.json").read_text()) for t in ancestors(root, tokens)]
    splits = {s: [str(root.root / p) for listing in listings for p in listing[s]] for s in ("train", "validation")}
    for path in (p for paths in splits.values() for p in paths):
        if not Path(path).is_file():
            raise DamagedArtifact(f"{path}: is missing, a shard of tokens/{tokens.id}; restore it, or tokenize again")
    replayed = sum(len(listing["train"]) for listing in listings[:-1])
    return TokenFiles(dtype=listings[-1]["dtype"], replayed=replayed, **splits)


def evaluate_base(
    model: Path,
    tokens: Artifact,
    searched: Artifact,
    context: int,
    out: Path,
    beside: Mapping[str, Mapping[str, float]] | None = None,
    reads: int | None = None,
) -> dict[str, Any]:
    """Evaluate a pretrained model on the validation split; write the report to `out` and return it.

    `searched` is the contamination search of that split. `beside` has the metrics of other models by name. If the text
    has canaries, the report shows how well the model knows them.

    With `reads`, the model is one of another run, which reads that many tokens of its own tokenizer at a time.
    """
    root = Store(tokens.path.parent.parent)
    planted = canaries_in(ancestors(root, tokens)[0])
    files, info, read = token_files(tokens), dict(tokens.info), passes(model, tokens)
    tokenizer = tokens.manifest["inputs"]["tokenizer"]
    own = (wanted(root, "tokenizer", tokenizer, tokens).path, reads) if reads else None
    remarks = unsearched(root, (read_manifest(model) or {}).get("id"))
    arguments = (model, files, info, searched.path, context, out, dict(beside or {}), planted, read, own, remarks)
    return next(iter(spread(_evaluate_base, [arguments])))


def evaluate_task(name: str, model: Path, examples: Artifact, searched: Artifact, out: Path) -> dict[str, Any]:
    """Evaluate a task's model on the test split; write the report to `out` and return it.

    `searched` is the contamination search of that split.
    """
    base = (read_manifest(model) or {}).get("inputs", {}).get("base")
    remarks = unsearched(Store(examples.path.parent.parent), base)
    return next(iter(spread(_evaluate_task, [(name, model, examples.path, searched.path, out, remarks)], model=model)))


def unsearched(root: Store, base: str | None) -> list[str]:
    """Return the remarks of a report on an imported base model; [] for one that was trained here."""
    source = published(root, root.get("base", base)) if base else None
    if source is None:
        return []
    return [
        f"The base model was imported from {source}: its training data are unknown, so held-out texts could not be "
        f"checked for contamination."
    ]


def passes(model: Path, tokens: Artifact) -> float | None:
    """Return the number of passes over these tokens in the model's training.

    Returns None if it read other tokens, or continued from another model.
    """
    manifest = read_manifest(model) or {}
    steps, spec = manifest.get("info", {}).get("steps"), manifest.get("spec", {})
    if manifest.get("inputs", {}).get("tokens") != tokens.id or "refresh" in spec or steps is None:
        return None
    train = spec["train"]
    return steps * train["batch_size"] * train["context"] / max(1, tokens.info["train_tokens"])


def _evaluate_base(
    path: Path,
    files: TokenFiles,
    info: dict[str, Any],
    searched: Path,
    context: int,
    out: Path,
    beside: dict[str, Any],
    planted: CanaryConfig,
    read: float | None,
    own: tuple[Path, int] | None = None,
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    from gpt2.evaluation import report
    from gpt2.tasks.base import exposure
    from gpt2.tasks.base import report as base_report
    from gpt2.training.journal import read_journal
    from gpt2.training_job import token_dataset

    parts = {"": (token_dataset(files, "validation", context), bytes_per_token(info))}
    if files.replayed:  # the loss on the old text shows forgetting
        new = {name: info[f"new_{name}"] for name in VALIDATION}
        old = {name: info[name] - new[name] for name in VALIDATION}
        halves = zip(("old", "new"), files.old_and_new(), (old, new), strict=True)
        parts = {name: (token_dataset(half, "validation", context), bytes_per_token(c)) for name, half, c in halves}
    training = token_dataset(files, "train", context)
    if own is None:
        content = base_report.evaluate(path / MODEL, parts, training, out)
    else:
        content = base_report.evaluate_by_own_tokens(path / MODEL, *own, parts, training, out)
    content["baselines"] |= beside
    content = contamination.attached(content, contamination.read(searched))
    content["remarks"] += remarks
    if planted.count and own is None:
        content = exposure.attached(content, exposure.measured(path / MODEL, planted, read))
    return report.write({**content, "curve": read_journal(path / JOURNAL)}, out)


VALIDATION = ("validation_bytes", "validation_tokens")


def bytes_per_token(counts: Mapping[str, int]) -> float:
    """Return the UTF-8 bytes per token of the validation split."""
    size, tokens = (counts[name] for name in VALIDATION)
    return size / max(1, tokens)


def _evaluate_task(
    name: str, path: Path, examples: Path, searched: Path, out: Path, remarks: Sequence[str] = ()
) -> dict[str, Any]:
    from gpt2.evaluation import report
    from gpt2.training.journal import read_journal

    content = contamination.attached(task(name).evaluate(path / MODEL, examples, out), contamination.read(searched))
    content["remarks"] += remarks
    return report.write({**content, "curve": read_journal(path / JOURNAL)}, out)
