"""What a run would do, without doing it: settings, stages, and the size of the job."""

from __future__ import annotations

import yaml
from rich.console import Console
from rich.table import Table

from cluster.home import store
from flows.config import PipelineConfig
from flows.plan import Plan, stages_done

BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def describe(config: PipelineConfig, plan: Plan, console: Console) -> None:
    """Print the resolved settings, which artifacts are done, and the predicted size."""
    console.print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), highlight=False, markup=False)
    table = Table(title="Stages", title_justify="left")
    for column in ("stage", "makes", "artifact", "state"):
        table.add_column(column)
    for stage, what, key, done in stages_done(plan, store()):
        table.add_row(stage, what, f"{key.kind}/{key.id}", "[green]done[/]" if done else "would run")
    console.print(table)
    console.print(size_table(config))


def size_table(config: PipelineConfig) -> Table:
    """Predicted parameters, tokens, arithmetic and memory of pretraining."""
    model, train, workers = config.model_config_with_vocabulary(), config.pretrain, config.cluster.num_workers
    table = Table(title="Size of pretraining", title_justify="left")
    table.add_column("what")
    table.add_column("predicted", justify="right")
    table.add_row("parameters", f"{model.n_parameters:,}")
    tokens = train.batch_size * train.context
    table.add_row("tokens per step", f"{tokens:,}")
    if train.steps is not None:
        flops = model.flops_per_token(train.context) * tokens * train.steps
        table.add_row("tokens in all", f"{tokens * train.steps:,}")
        table.add_row("arithmetic", f"{flops:.2e} FLOP")
    table.add_row("memory per worker", f"{memory_bytes(config) / 2**30:.1f} GiB")
    table.add_row("workers", f"{workers} x {'GPU' if config.cluster.use_gpu else 'CPU'}")
    table.add_row("checkpoint", f"{12 * model.n_parameters / 2**30:.2f} GiB")
    return table


def memory_bytes(config: PipelineConfig) -> int:
    """Parameters, gradients, fp32 master and moments under ZeRO (Rajbhandari et al. 2020, section 3), activations
    (Korthikanti et al. 2022: about 34 bytes per token, width and layer at 16 bits) and the libraries' own 0.6 GiB."""
    model, train, cluster = config.model_config_with_vocabulary(), config.pretrain, config.cluster
    n, workers = model.n_parameters, cluster.num_workers
    from gpt2.peak import decided

    width = BYTES[decided(train, cluster.use_gpu).precision]
    parameters = n * width // (workers if cluster.zero_stage >= 3 else 1)
    gradients = n * width // (workers if cluster.zero_stage >= 2 else 1)
    states = 12 * n // (workers if cluster.zero_stage >= 1 else 1)
    tokens = train.micro_batch_size * train.context
    per_layer = 2 * width * model.n_embd if train.activation_checkpointing else 17 * width * model.n_embd
    return parameters + gradients + states + tokens * model.n_layer * per_layer + int(0.6 * 2**30)
