"""What each worker of a training does: build the job, train, and on rank 0 write the model."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray.train

from cluster.config import ClusterConfig
from cluster.training.failures import forwarded_warnings
from cluster.training.usage import Usage
from gpt2.store.artifact import read_manifest
from gpt2.store.model_files import MODEL
from gpt2.training.guard import GaveUp, NotWritten, Preempted
from gpt2.training.journal import EVENTS, Events, read_journal
from gpt2.training_job import Job

STOP = "_stop"
"""A file that asks the workers to save and stop at their next step."""
STACKS = "_stacks"


def work(config: dict[str, str]) -> None:
    """The training function of each Ray Train worker."""
    job, cluster = Job.model_validate_json(config["job"]), ClusterConfig.model_validate_json(config["cluster"])
    output = Path(job.output)
    if gave_up(output):
        return  # a rank said so before it failed; Ray has started us again to hear it
    rank = ray.train.get_context().get_world_rank()
    try:
        with (
            Usage(output, f"rank{rank}", cluster.cpus_per_worker, cluster.use_gpu),
            forwarded_warnings(Events(output), rank),
        ):
            train(job, cluster)
    except Preempted:
        if not (output / STOP).exists():
            raise  # this node goes away: Ray goes on elsewhere, and does not count it as a failure
    except (GaveUp, ValueError, NotWritten) as error:
        if hopeless(error):
            with contextlib.suppress(OSError):  # the disk may be full
                Events(output).tell("gave up", reason=str(error))
        raise


def hopeless(error: Exception) -> bool:
    """Whether the next start would end alike. When a worker has died Ray takes the process group away from the others,
    and PyTorch's `ValueError` about that is no mistake of the user's."""
    import torch

    return not isinstance(error, ValueError) or torch.distributed.is_initialized()


def gave_up(output: Path) -> str | None:
    """Why the latest launch gave up, None where it did not."""
    for event in reversed(read_journal(output / EVENTS)):
        if event["event"] == "launch":
            return None
        if event["event"] == "gave up":
            return event["reason"]
    return None


def train(job: Job, cluster: ClusterConfig) -> None:
    from cluster.engine.deepspeed_engine import DeepSpeedEngine, prepare_environment

    prepare_environment(cluster.use_gpu, job.train.compile)
    import torch

    from cluster.checkpoints.checkpointer import Checkpointer
    from cluster.checkpoints.files import Mirror
    from cluster.training.stopping import Watchdog
    from gpt2.training.engine import DTYPES
    from gpt2.training.hardware import peak_flops
    from gpt2.training.loop import fit
    from gpt2.training_job import build

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    parts = build(job)
    if job.train.compile:
        for block in parts.gpt2.blocks:
            block.compile()
    output = Path(job.output)
    rank = torch.distributed.get_rank()
    watchdog = Watchdog(cluster.hang_seconds, output / STACKS, rank, Events(output))
    engine = DeepSpeedEngine(parts.module, job.train, cluster, alive=watchdog.alive)
    events = Events(output if rank == 0 else None)
    with alone(output) if rank == 0 else contextlib.nullcontext():
        header = {
            "job": identity(job),
            "placement": {"world_size": engine.world_size, "zero_stage": cluster.zero_stage},
            "batch_tokens": job.train.batch_size * job.train.context,
        }
        earlier = None
        if job.earlier:
            address, _, name = job.earlier.rpartition("/")
            earlier = Mirror(address, name, events)
        mirror = Mirror(cluster.checkpoint_url, output.name, events) if cluster.checkpoint_url else None
        checkpoints = Checkpointer(
            output / "_checkpoints",
            job.train.keep_checkpoints,
            job.train.archive_every,
            header,
            events,
            watchdog.alive,
            mirror,
            earlier,
        )
        peak = peak_flops(DTYPES[job.train.precision], engine.device) * engine.world_size
        flops = parts.gpt2.config.flops_per_token(job.train.context, with_head=job.pretrains)
        watchdog.start()
        stop = stop_asked(output)
        fit(engine, parts.training, parts.validation, job.train, output, checkpoints, flops, peak, stop)
        watchdog.end()
        weights = engine.weights()
        if rank == 0:
            final = build(job)
            final.module.load_state_dict(weights, strict=False)
            aside = output / f"_{MODEL}"
            aside.mkdir(exist_ok=True)
            final.save(aside)
            aside.rename(output / MODEL)
        torch.distributed.barrier()


@contextlib.contextmanager
def alone(output: Path) -> Iterator[None]:
    """Waits until no other attempt's first worker is alive: those of a killed driver may live for some seconds more."""
    with open(output / "_lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def stop_asked(output: Path) -> Callable[[], bool]:
    """Whether the driver, or the cluster that drains a node of ours, wants the training to stop."""
    # Not `ray.train.get_preemption_info`, which waits until every rank has called it as often: the ranks' steps do
    # too, and a rank that asks a step earlier than another would wait for ever. The loop agrees by itself.
    from ray.train.v2._internal.execution.context import get_train_context

    preemption = get_train_context().preemption_context
    return lambda: (output / STOP).exists() or preemption.preemption_info is not None


def identity(job: Job) -> dict[str, Any]:
    """What a checkpoint's state depends on, as JSON: inputs by the id of their artifact, wherever it lies."""
    described = json.loads(json.dumps({**job.identity(), "output": None, "earlier": None}))
    for name in ("tokenizer", "base", "examples", "teacher"):
        if described[name]:
            described[name] = artifact_id(Path(described[name]))
    if described["tokens"]:
        for split in ("train", "validation"):
            paths = [Path(p) for p in described["tokens"][split]]
            described["tokens"][split] = [f"{artifact_id(p.parent)}/{p.name}" for p in paths]
    return described


def artifact_id(path: Path) -> str:
    """The id of the artifact that a path is of or in, else the path."""
    for folder in (path, path.parent):
        if manifest := read_manifest(folder):
            return f"{manifest.get('kind')}/{manifest.get('id')}"
    return str(path)
