"""Turn documents into token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task

from cluster.batch import tokenization
from cluster.home import samples, store
from cluster.tracking.runs import Run
from flows.config import PipelineConfig, resolve
from flows.plan import Plan, local_source, make_plan
from flows.runs.stage import make, recorded, say
from flows.stage_code import stage_code
from gpt2.data import corpus
from gpt2.data.canaries import PLANTED
from gpt2.data.samples import fetch
from gpt2.data.tokenizer import Tokenizer
from gpt2.store.artifact import Artifact


@task(name="clean documents")
def clean_documents(config: PipelineConfig, plan: Plan) -> list[Artifact]:
    """Read, validate and normalise every source file; quarantine bad documents."""
    keys = list(plan.documents)
    existing = [store().find(key) for key in keys]
    done = [a for a in existing if a]
    if len(done) == len(keys):
        say(f"clean documents: done before ({len(keys)} files)")
    else:
        sources = {f"{i:06d}": key.inputs["source"] for i, key in enumerate(keys)}
        settings = {"corpus": config.corpus.model_dump(mode="json")}
        with recorded("clean-documents", plan.corpus.id, settings, sources) as run:
            paths = [local_source(s) for s in plan.sources]
            done = tokenization.clean_documents(store(), keys, paths, config.corpus, say)
            run.metrics({name: sum(a.info[name] for a in done) for name in ("documents", "bad")})
        for note in corpus.notes(config.corpus.sources, [a.info for a in done]):
            say(f"clean documents: {note}")
    corpus.check_bad_share([dict(a.info) | {"quarantine": str(a.path)} for a in done], config.corpus)
    return done


@task(name="drop duplicates")
def drop_duplicates(plan: Plan, documents: list[Artifact]) -> Artifact:
    """Keep the first of equal documents; return the corpus."""
    return make("drop-duplicates", plan.corpus, {}, lambda out, run: tokenization.deduplicate(documents, out))


@task(name="tokenizer")
def make_tokenizer(config: PipelineConfig, plan: Plan, documents: list[Artifact], merged: Artifact) -> Artifact:
    """Learn a BPE from the training split, or take GPT-2's."""

    def build(out: Path, run: Run) -> dict[str, Any]:
        if config.tokenizer.kind == "gpt2":
            folder = fetch("gpt2-bpe", samples())
            Tokenizer.gpt2(folder / "encoder.json", folder / "vocab.bpe").save(out)
            return {"vocab_size": 50257}
        return tokenization.train_tokenizer(documents, merged, config.corpus, config.tokenizer, out)

    return make("tokenizer", plan.tokenizer, config.tokenizer.model_dump(mode="json"), build)


@task(name="encode")
def encode(
    config: PipelineConfig, plan: Plan, documents: list[Artifact], merged: Artifact, tokenizer: Artifact
) -> Artifact:
    """Encode the documents into token shards."""

    def build(out: Path, run: Run) -> dict[str, Any]:
        return tokenization.encode(
            store(), documents, merged, tokenizer, config.corpus, config.tokenizer.dtype, stage_code("encode"),
            out, say, planted=config.canaries,
        )  # fmt: skip

    return make("encode", plan.tokens, {}, build)


@flow(name="tokenize", flow_run_name="tokenize")
def tokenize(config: PipelineConfig = resolve("laptop")) -> str:
    """Turn text files into token shards.

    Args:
        config: the pipeline's settings; this stage reads `corpus`, `tokenizer` and `canaries`.
    """
    plan = make_plan(config)
    documents = clean_documents(config, plan)
    merged = drop_duplicates(plan, documents)
    tokenizer = make_tokenizer(config, plan, documents, merged)
    tokens = encode(config, plan, documents, merged, tokenizer)
    info = tokens.info
    say(
        f"{info['train_documents']:,} documents, {info['train_tokens']:,} tokens to train on; "
        f"{info['validation_documents']:,} documents, {info['validation_tokens']:,} tokens to validate on"
    )
    if planted := info.get(PLANTED):
        say(f"{planted:,} canaries were planted among the documents to train on")
    return tokens.id
