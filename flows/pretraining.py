"""A GPT-2 from token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task

from cluster.evaluation import token_files
from cluster.home import store
from cluster.kept import earlier
from cluster.stopping import politely
from cluster.tracking import Run
from flows.config import PipelineConfig, resolve
from flows.plan import Plan, make_plan
from flows.stage import make
from flows.training import run_job
from gpt2.artifact import Artifact
from gpt2.jobs import Job


@task(name="train base model")
def train_base(config: PipelineConfig, plan: Plan) -> Artifact:
    """Pretrain on the token shards."""

    def build(out: Path, run: Run) -> dict[str, Any]:
        tokens = store().require("tokens", plan.tokens.id)
        tokenizer = store().require("tokenizer", plan.tokenizer.id)
        files = token_files(tokens)
        config.pretrain.total_steps(max(0, tokens.info["train_tokens"] - 1) // config.pretrain.context)
        job = Job(
            name="base",
            train=config.pretrain,
            tokenizer=str(tokenizer.path),
            output=str(out),
            model=config.model_config_with_vocabulary(),
            tokens=files,
            earlier=earlier("base", config.pretrain.continue_from, config.cluster.checkpoint_url),
        )
        return run_job(job, config.cluster, run, config.budget)

    return make("pretrain", plan.base, config.model_dump(mode="json"), build)


@flow(name="pretrain")
def pretrain(config: PipelineConfig = resolve("laptop")) -> str:
    """GPT-2 is trained on the token shards.

    Args:
        config: the pipeline's settings; this stage reads `model`, `pretrain` and `cluster`.
    """
    with politely():
        return train_base(config, make_plan(config)).id
