"""The flow `refresh`: the champion goes on with new text only, and the gate judges the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.states import Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from cluster.batch import evaluation, tokenization
from cluster.batch.evaluation import token_files
from cluster.home import store
from cluster.registry import versions
from cluster.tracking.runs import Run
from cluster.training.stopping import politely
from flows.config import PipelineConfig, resolve
from flows.jobs.refresh_plan import RefreshPlan
from flows.plan import MAX_TOKENS, Plan, local_source
from flows.runs.stage import make, parent_of_all, say
from flows.stage_code import stage_code
from flows.stages import results
from flows.stages.evaluation import evaluate_task, publish, search
from flows.stages.gate import report_of
from flows.stages.registration import register_model
from flows.stages.training import finetune_all, run_job
from gpt2.data import corpus
from gpt2.store.artifact import Artifact
from gpt2.store.model_files import MODEL
from gpt2.training_job import TrainingJob


@task(name="find new documents")
def find_documents(new: RefreshPlan) -> Artifact:
    """Clean the new or changed files; keep the documents that are not in the champion's text."""
    config = new.config.corpus

    def build(out: Path, run: Run) -> dict[str, Any]:
        paths = [local_source(path) for path in new.sources]
        cleaned = tokenization.clean_documents(store(), new.documents, paths, config, say, here=new.small)
        for note in corpus.notes(config.sources, [a.info for a in cleaned]):
            say(f"new documents: {note}")
        corpus.check_bad_share([dict(a.info) | {"quarantine": str(a.path)} for a in cleaned], config)
        return tokenization.deduplicate(cleaned, out, new.champion.documents())

    return make("find-new-documents", new.corpus, {"corpus": config.model_dump(mode="json")}, build)


@task(name="encode new documents")
def encode_documents(new: RefreshPlan, merged: Artifact) -> Artifact:
    """Encode the new documents with the champion's tokenizer, into new shards."""

    def build(out: Path, run: Run) -> dict[str, Any]:
        before, config = new.champion, new.config
        documents = [store().require("documents", key.id) for key in new.documents]
        return tokenization.encode(
            store(), documents, merged, before.tokenizer, config.corpus, config.tokenizer.dtype, stage_code("encode"),
            out, say, parent=before.tokens[-1], here=new.small,
        )  # fmt: skip

    return make("encode-new-documents", new.tokens, {}, build)


@task(name="go on training")
def train_on(new: RefreshPlan, tokens: Artifact, plan: Plan) -> Artifact:
    """Continue pretraining from the champion's weights, with new samples and replayed old ones."""
    config, samples = new.config, new.new_samples(tokens)
    train = new.training(tokens)

    def build(out: Path, run: Run) -> dict[str, Any]:
        assert train.steps is not None
        files = token_files(tokens)
        share = 1 - config.refresh.epochs * samples / (train.steps * train.batch_size) if files.replayed else 0.0
        say(f"base: {train.steps} steps from version {new.champion.version}, {share:.0%} of their samples are old text")
        parent = store().require("base", new.champion.base.id)
        job = TrainingJob(
            name="base",
            train=train,
            tokenizer=str(store().require("tokenizer", plan.tokenizer.id).path),
            output=str(out),
            model=new.champion.model,
            tokens=files,
            base=str(parent.path / MODEL),
            new_epochs=config.refresh.epochs,
        )
        return run_job(job, config.cluster, run, config.budget) | {"replayed_share": share}

    return make("refresh", plan.base, config.model_dump(mode="json"), build)


@task(name="evaluate base model")
def evaluate_base(new: RefreshPlan, plan: Plan) -> Artifact:
    """Measure bits per byte on the old and the new validation text, beside the champion's; return the report."""
    searched = search("base", plan)

    def build(out: Path, run: Run) -> dict[str, Any]:
        model, tokens = store().require("base", plan.base.id), store().require("tokens", plan.tokens.id)
        champion = versions.by_alias(plan.pretrained.registered, versions.CHAMPION)
        beside = {}
        if champion and champion.tags[versions.ARTIFACT_TAG] != plan.base.id:
            theirs = report_of(champion, "base", plan, new.config)
            beside = {f"champion (version {champion.version})": theirs["metrics"]}
        context, most = new.config.pretrain.context, plan.pretrained.report.spec[MAX_TOKENS]
        metrics = evaluation.evaluate_base(model.path, tokens, searched, context, out, most, beside)["metrics"]
        run.files(out, "report")
        return metrics

    report = make("evaluate-base", plan.pretrained.report, {}, build)
    publish("base", report)
    return report


@flow(name="refresh", flow_run_name="refresh", task_runner=ThreadPoolTaskRunner(max_workers=8))
def refresh(config: PipelineConfig = resolve("laptop")) -> dict[str, Any] | State:
    """Continue the champion's training on new or changed documents, replaying old ones so that it does not forget them.

    Ends at once if there are none. Model, tokenizer and split are the champion's.

    Args:
        config: the pipeline's settings; it reads `corpus.sources`, `refresh`, `pretrain`, `tasks` and `cluster`.
    """
    new = RefreshPlan.of(config)
    if reason := new.nothing():
        return ended(reason)
    with parent_of_all() as run:
        result = go_on(new)
        run.params(new.config.model_dump(mode="json"))
    return result if isinstance(result, State) else {**result, "mlflow_run": run.id}


def ended(reason: str) -> State:
    """Return the flow run's state if there is nothing to do."""
    say(reason)
    return Completed(message=reason, data={"registered": [], "nothing": reason})


def go_on(new: RefreshPlan) -> dict[str, Any] | State:
    """Run all stages; return the registry's rows, or the state if a stage shows that there is too little new text."""
    merged = find_documents(new)
    if reason := new.nothing():
        return ended(reason)
    tokens = encode_documents(new, merged)
    if reason := new.nothing():
        return ended(reason)
    plan = new.plan(tokens)
    with politely():
        train_on(new, tokens, plan)
        finetune_all(new.config, plan)
    reports = [evaluate_base.submit(new, plan), *(evaluate_task.submit(name, plan) for name in plan.tasks)]
    for report in reports:
        report.result()
    # The base comes last: until then the champion is the old one, so a repeated run after a kill finds the same new
    # text.
    rows = [register_model(name, new.config, plan) for name in (*plan.tasks, "base")]
    results.publish(plan, rows)
    return {"registered": rows}
