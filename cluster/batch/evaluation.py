"""Evaluation on the cluster's workers: a model's directory and its held-out examples in, a report's directory out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.connect import spread, spread_into
from cluster.home import store
from cluster.registry.lineage import ancestors, canaries_in, published, wanted
from gpt2.data.batches import TokenDataset
from gpt2.data.config import CanaryConfig
from gpt2.data.shards import TokenStream
from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation import contamination
from gpt2.store.artifact import Artifact, DamagedArtifact, Store, read_manifest
from gpt2.store.model_files import MODEL
from gpt2.tasks.base.report import bounded, bounded_sentence, own_samples, piece_file, piece_losses, pieces
from gpt2.tasks.task import task
from gpt2.training.journal import JOURNAL
from gpt2.training_job import TokenFiles, token_dataset

if TYPE_CHECKING:  # the driver does not load PyTorch
    from gpt2.model.transformer import GPT2


def token_files(tokens: Artifact) -> TokenFiles:
    """Return the shards of a tokens artifact, those of its parents first: absolute paths, or names in a distant store.

    Raises `DamagedArtifact` if a parent or a shard is missing.
    """
    root = tokens.store or store()
    listings = [json.loads(t.file("tokens.json").read_text()) for t in ancestors(root, tokens)]
    folder = "" if root.distant else f"{root.root}/"
    splits = {s: [f"{folder}{p}" for listing in listings for p in listing[s]] for s in ("train", "validation")}
    for path in (p for paths in splits.values() for p in paths):
        if folder and not Path(path).is_file():
            raise DamagedArtifact(f"{path}: is missing, a shard of tokens/{tokens.id}; restore it, or tokenize again")
    replayed = sum(len(listing["train"]) for listing in listings[:-1])
    return TokenFiles(dtype=listings[-1]["dtype"], replayed=replayed, **splits)


def evaluate_base(
    model: Path,
    tokens: Artifact,
    searched: Artifact,
    context: int,
    out: Path,
    most: int,
    beside: Mapping[str, Mapping[str, float]] | None = None,
    reads: int | None = None,
) -> dict[str, Any]:
    """Evaluate a pretrained model on at most `most` tokens of the validation split; write the report to `out` and
    return it.

    The losses are computed in pieces on all cores and GPUs; those that a killed evaluation left in `out` are kept. With
    a distant store, one worker computes them all.

    `searched` is the contamination search of that split. `beside` has the metrics of other models by name. If the text
    has canaries, the report shows how well the model knows them.

    With `reads`, the model is one of another run, which reads that many tokens of its own tokenizer at a time.
    """
    root = tokens.store or store()
    planted = canaries_in(ancestors(root, tokens)[0])
    tokenizer = wanted(root, "tokenizer", tokens.manifest["inputs"]["tokenizer"], tokens).name
    held_out = HeldOut(token_files(tokens), dict(tokens.info), context, tokenizer, most, reads)
    if not root.distant:  # else workers do not see `out`: the one that writes the report computes the losses
        for _ in spread(_losses, held_out.located(root).calls(model, out), model=model):
            pass
    remarks = unsearched(root, (read_manifest(model) or {}).get("id"))
    given = (root, root.hand(model), held_out, searched.name, dict(beside or {}), planted, passes(model, tokens))
    return spread_into(out, root, _evaluate_base, (*given, remarks), model=model)


@dataclass(frozen=True)
class HeldOut:
    """The held-out text that a pretrained model is measured on."""

    files: TokenFiles
    info: Mapping[str, Any]
    context: int
    tokenizer: str
    """The run's tokenizer: its directory, or its name in the store."""
    most: int
    """Most tokens that are read."""
    own: int | None = None
    """The model's context, where the model reads with a tokenizer of its own."""

    def located(self, root: Store) -> HeldOut:
        """Return the same text, by paths on this machine."""
        files = self.files.moved(lambda name: str(root.locate(name)))
        return replace(self, files=files, tokenizer=str(root.locate(self.tokenizer)))

    def parts(self, out: Path) -> dict[str, tuple[TokenDataset, float]]:
        """Return {name: (samples, UTF-8 bytes per token)}; old and new text apart, whose losses show forgetting."""
        info, halves = self.info, [("", self.files, {name: self.info[name] for name in VALIDATION})]
        if self.files.replayed:
            new = {name: info[f"new_{name}"] for name in VALIDATION}
            old = {name: info[name] - new[name] for name in VALIDATION}
            halves = list(zip(("old", "new"), self.files.old_and_new(), (old, new), strict=True))
        whole = [(name, token_dataset(half, "validation", self.context), counts) for name, half, counts in halves]
        total, end = sum(len(data.stream) for _, data, _ in whole), Tokenizer.load(Path(self.tokenizer)).end_of_text
        parts = {}
        for name, data, counts in whole:
            most = self.most if total <= self.most else self.most * len(data.stream) // total
            parts[name] = (bounded(data, most, end, out / f"_part{name}.bin"), bytes_per_token(counts))
        return parts

    def calls(self, model: Path, out: Path) -> Iterator[tuple]:
        """Yield the arguments of `_losses` for each piece of text that is not read yet."""
        for name, (data, _) in self.parts(out).items():
            samples = data
            if self.own and len(data):
                both = Tokenizer.load(model / MODEL), Tokenizer.load(Path(self.tokenizer))
                samples = own_samples(*both, self.own, data, out / f"_read{name}.bin")
            kept = out / LOSSES / f"losses{name}"
            for piece in pieces(samples):
                if not piece_file(kept, piece).exists():
                    yield model / MODEL, samples.stream.paths, samples.stream.dtype, samples.context, piece, kept


LOSSES = "_losses"
"""Folder of the pieces' losses, within an unfinished report."""


def _losses(model: Path, paths: list[Path], dtype: str, context: int, piece: range, kept: Path) -> None:
    """Compute and keep the losses of a piece, on a worker."""
    piece_losses(_reader(model), TokenDataset(TokenStream(paths, dtype), context), piece, kept)


@lru_cache(maxsize=1)
def _reader(directory: Path) -> GPT2:
    from gpt2 import weights
    from gpt2.model.hardware import ready

    return ready(weights.load(directory))


def evaluate_task(name: str, model: Path, examples: Artifact, searched: Artifact, out: Path) -> dict[str, Any]:
    """Evaluate a task's model on the test split; write the report to `out` and return it.

    `searched` is the contamination search of that split.
    """
    base = (read_manifest(model) or {}).get("inputs", {}).get("base")
    root = examples.store or store()
    given = (root, name, root.hand(model), examples.name, searched.name, unsearched(root, base))
    return spread_into(out, root, _evaluate_task, given, model=model)


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
    root: Store,
    model: str,
    held_out: HeldOut,
    searched: str,
    beside: dict[str, Any],
    planted: CanaryConfig,
    read: float | None,
    remarks: Sequence[str],
    out: Path,
) -> dict[str, Any]:
    from gpt2.evaluation import report
    from gpt2.tasks.base import exposure
    from gpt2.tasks.base import report as base_report
    from gpt2.training.journal import read_journal

    path, held_out = root.locate(model), held_out.located(root)
    parts, own = held_out.parts(out), held_out.own
    training = token_dataset(held_out.files, "train", held_out.context)
    kept = None if root.distant else out / LOSSES
    if own is None:
        content = base_report.evaluate(path / MODEL, parts, training, out, kept)
    else:
        tokenizer = Path(held_out.tokenizer)
        content = base_report.evaluate_by_own_tokens(path / MODEL, tokenizer, own, parts, training, out, kept)
    measured, total = sum(len(data.stream) for data, _ in parts.values()), held_out.info["validation_tokens"]
    if measured < total:
        content["remarks"] = [*content.get("remarks", []), bounded_sentence(measured, total)]
    content["baselines"] |= beside
    content = contamination.attached(content, contamination.read(root.locate(searched)))
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
    root: Store, name: str, model: str, examples: str, searched: str, remarks: Sequence[str], out: Path
) -> dict[str, Any]:
    from gpt2.evaluation import report
    from gpt2.training.journal import read_journal

    path = root.locate(model)
    content = task(name).evaluate(path / MODEL, root.locate(examples), out)
    content = contamination.attached(content, contamination.read(root.locate(searched)))
    content["remarks"] += remarks
    return report.write({**content, "curve": read_journal(path / JOURNAL)}, out)
