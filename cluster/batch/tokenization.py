"""Turn documents into token shards on the cluster's workers, by source file and by piece."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.connect import spread
from gpt2.data import canaries, corpus, shards
from gpt2.data.canaries import PLANTED
from gpt2.data.config import CanaryConfig, CorpusConfig, TokenizerConfig
from gpt2.data.tokenizer import Tokenizer
from gpt2.store.artifact import Artifact, Key, Store, digest

Report = Callable[[str], None]
Places = dict[bytes, list[str]]
"""Canaries by the digest of the document that they follow."""
COUNTS = [f"{split}_{unit}" for split in ("train", "validation") for unit in ("tokens", "documents", "bytes")]


def clean_documents(
    store: Store, keys: Sequence[Key], paths: Sequence[str], config: CorpusConfig, say: Report, here: bool = False
) -> list[Artifact]:
    """Clean source files that are not cleaned yet; return an artifact of cleaned documents per file.

    `here` works in this process, without starting Ray, as files of this machine are read that others may not have.
    """
    missing = [(key, path) for key, path in zip(keys, paths, strict=True) if store.find(key) is None]
    calls = [(store, key, path, config) for key, path in missing]
    here = here or (store.distant and any("://" not in path for _, path in missing))
    for done, (path, info) in enumerate(each(clean_one, calls, here), start=1):
        say(f"cleaned {done} of {len(calls)} files: {path}, {info['documents']:,} documents, {info['bad']:,} bad")
    return [artifact for key in keys if (artifact := store.find(key))]


def each(function: Callable[..., Any], calls: Sequence[tuple], here: bool) -> Iterator[Any]:
    """Yield the results of calls as they come, from this process (`here`) or the cluster; no calls start no cluster."""
    return (function(*call) for call in calls) if here or not calls else spread(function, calls)


def clean_one(store: Store, key: Key, path: str, config: CorpusConfig) -> tuple[str, dict[str, Any]]:
    """Clean one file, on a worker; return (path, counts)."""
    return path, store.make(key, lambda out: corpus.clean(path, config, out)).info


def pieces_of(documents: Artifact) -> list[Path]:
    """Return the pieces of cleaned documents, in order."""
    return [documents.path / name for name in sorted(documents.manifest["files"]) if name.endswith(".parquet")]


def deduplicate(documents: Sequence[Artifact], out: Path, known: Sequence[Artifact] = ()) -> dict[str, Any]:
    """Keep the first of equal documents; write a row of booleans per piece to `keep.npz` and return the counts.

    A document in one of the `known` artifacts is a duplicate.
    """
    before, pieces = ([p for artifact in a for p in pieces_of(artifact)] for a in (known, documents))
    kept = corpus.deduplicate([*before, *pieces])[len(before) :]
    np.savez_compressed(out / "keep.npz", allow_pickle=False, **{f"{i:06d}": mask for i, mask in enumerate(kept)})
    total, unique = sum(len(mask) for mask in kept), sum(int(mask.sum()) for mask in kept)
    bad = sum(a.info["bad"] for a in documents)
    return {"documents": total, "unique_documents": unique, "duplicates": total - unique, "bad": bad}


def kept_masks(merged: Artifact) -> list[np.ndarray]:
    """Return the masks that `deduplicate` wrote: for each piece, which documents are kept."""
    with np.load(merged.file("keep.npz"), allow_pickle=False) as arrays:
        return [arrays[name] for name in sorted(arrays.files)]


def train_tokenizer(
    documents: Sequence[Artifact], merged: Artifact, corpus_config: CorpusConfig, config: TokenizerConfig, out: Path
) -> dict[str, Any]:
    """Train a BPE on the training split; save it to `out` and return its size.

    At most `config.training_chars` characters are read, evenly from all pieces.
    """
    pieces = [piece for artifact in documents for piece in pieces_of(artifact)]
    masks = kept_masks(merged)
    share = config.training_chars // max(1, len(pieces))

    def texts() -> Iterator[str]:
        for piece, keep in zip(pieces, masks, strict=True):
            used = 0
            for text in shards.training_texts(piece, keep, corpus_config.validation_share):
                yield text
                used += len(text)
                if used >= share:
                    break

    tokenizer = Tokenizer.train(texts(), config.vocab_size)
    tokenizer.save(out)
    return {"vocab_size": tokenizer.vocab_size}


def encode(
    store: Store,
    documents: Sequence[Artifact],
    merged: Artifact,
    tokenizer: Artifact,
    corpus_config: CorpusConfig,
    dtype: str,
    code: tuple[str, ...],
    out: Path,
    say: Report,
    parent: Artifact | None = None,
    here: bool = False,
    planted: CanaryConfig | None = None,
) -> dict[str, Any]:
    """Encode documents into token shards, an artifact per piece; list them in `tokens.json` and return the counts.

    Finished pieces are not encoded again. With a `parent`, the tokens that these continue, the counts are those of both
    together, and `new_…` those of these alone. `here` is as in `clean_documents`. Canaries are `planted` in the
    training split; shards without canaries don't change.
    """
    masks, after = iter(kept_masks(merged)), iter(canaries_after(documents, merged, corpus_config, planted))
    spec = {"dtype": dtype, "validation_share": corpus_config.validation_share}
    keys, calls = [], []
    for artifact in documents:
        for number, piece in enumerate(pieces_of(artifact)):
            mask, behind = next(masks), next(after)
            if not mask.any():
                continue
            inputs = {
                "documents": artifact.id,
                "piece": str(number),
                "keep": digest(np.packbits(mask).tobytes().hex()),
                "tokenizer": tokenizer.id,
            }
            own = spec | {"planted": shown(behind)} if behind else spec
            key = Key("shard", own, inputs, (*code, *canaries.CODE) if behind else code)
            keys.append(key)
            if store.find(key) is None:
                calls.append((store, key, store.name(piece), mask, tokenizer.name, spec, behind))
    tokens = 0
    for done, info in enumerate(each(encode_one, calls, here), start=1):
        tokens += info["train_tokens"] + info["validation_tokens"]
        if done % max(1, len(calls) // 5) == 0:
            say(f"encoded {done} of {len(calls)} pieces, {tokens:,} tokens")
    made = [store.require("shard", key.id) for key in keys]
    listing = {
        "dtype": dtype,
        **{s: [f"{a.name}/{s}.bin" for a in made] for s in ("train", "validation")},
    }
    (out / "tokens.json").write_text(json.dumps(listing, indent=1))
    counts = {name: sum(a.info[name] for a in made) for name in COUNTS}
    if parent is None:
        return counts | ({PLANTED: sum(a.info.get(PLANTED, 0) for a in made)} if planted and planted.count else {})
    total = {name: counts[name] + parent.info[name] for name in COUNTS}
    total |= {name: count for name, count in parent.info.items() if name == PLANTED}
    return total | {f"new_{name}": count for name, count in counts.items()}


def canaries_after(
    documents: Sequence[Artifact], merged: Artifact, config: CorpusConfig, planted: CanaryConfig | None
) -> list[Places]:
    """Return the canaries of each piece."""
    pieces, masks = [piece for artifact in documents for piece in pieces_of(artifact)], kept_masks(merged)
    if planted is None or not planted.count:
        return [{} for _ in pieces]
    masked = zip(pieces, masks, strict=True)
    return canaries.places(planted, (canaries.training_digests(p, m, config.validation_share) for p, m in masked))


def shown(after: Places) -> str:
    """Return a digest of a piece's canaries and their places."""
    return digest({mark.hex(): texts for mark, texts in after.items()})


def encode_one(
    store: Store, key: Key, piece: str, keep: np.ndarray, tokenizer: str, spec: dict[str, Any], after: Places
) -> dict[str, Any]:
    """Encode one piece with its canaries, on a worker; return the counts."""

    def build(out: Path) -> dict[str, Any]:
        source, extra = store.locate(piece), [text for texts in after.values() for text in texts]
        path, mask = source, keep
        if extra:
            path = out / "_planted.parquet"
            mask = np.ones(canaries.plant(source, keep, after, path), dtype=bool)
        tokenizer_of, share = Tokenizer.load(store.locate(tokenizer)), spec["validation_share"]
        info = shards.encode_piece(path, mask, tokenizer_of, spec["dtype"], share, out)
        if extra:
            info["train_documents"] -= len(extra)
            info["train_bytes"] -= sum(len(text.encode()) for text in extra)
            info[PLANTED] = len(extra)
        return info

    return dict(store.make(key, build).info)
