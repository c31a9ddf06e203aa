"""A worker of a training: it builds the job, trains, and on rank 0 writes the model."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray.train

from cluster.config import ClusterConfig
from cluster.training.follow import STOP, forwarded_warnings, sending
from cluster.training.usage import Usage
from gpt2.store.artifact import Store, read_manifest
from gpt2.store.model_files import MODEL
from gpt2.training.guard import GaveUp, NotWritten, Preempted
from gpt2.training.journal import EVENTS, Events, read_journal
from gpt2.training_job import TrainingJob

STACKS = "_stacks"
RANKS = ".ranks"
"""Folder in a machine's cache of a distant store: what its workers write."""
TRAINED = "trained"
"""Event with the name of the trained model in a distant store."""


def work(config: dict[str, Any]) -> None:
    """The training function of each Ray Train worker."""
    job, cluster = TrainingJob.model_validate_json(config["job"]), ClusterConfig.model_validate_json(config["cluster"])
    store: Store = config["store"]
    if not store.distant:
        at_work(job.moved(lambda name: str(store.locate(name))), cluster, store)
        return
    # The ranks of a machine share a folder of its disk, and the first of them sends what is written there.
    job = job.model_copy(update={"output": str(store.root / RANKS / Path(job.output).name)})
    output, first = Path(job.output), ray.train.get_context().get_local_rank() == 0
    output.mkdir(parents=True, exist_ok=True)
    if ray.get(config["mailbox"].put.remote([])).get("gave_up"):
        return
    with sending(config["mailbox"], output) if first else contextlib.nullcontext():
        at_work(fetched(job, store), cluster, store)
    if first and not (output / STOP).exists():
        shutil.rmtree(output, ignore_errors=True)


def fetched(job: TrainingJob, store: Store) -> TrainingJob:
    """Return the job with its inputs on this machine's disk."""
    names: list[str] = []
    job.moved(lambda name: names.append(name) or name)  # type: ignore[func-returns-value]
    with ThreadPoolExecutor(8) as pool:
        places = dict(zip(names, pool.map(store.locate, names), strict=True))
    return job.moved(lambda name: str(places[name]))


def at_work(job: TrainingJob, cluster: ClusterConfig, store: Store) -> None:
    output = Path(job.output)
    if gave_up(output):
        return  # a rank recorded it before it failed, and Ray restarted the workers
    rank = ray.train.get_context().get_world_rank()
    try:
        with (
            Usage(output, f"rank{rank}", cluster.cpus_per_worker, cluster.use_gpu),
            forwarded_warnings(Events(output), rank),
        ):
            train(job, cluster, store, stop_asked(output))
    except Preempted:
        if not (output / STOP).exists():
            raise  # this node goes away: Ray restarts elsewhere, and does not count it as a failure
    except (GaveUp, ValueError, NotWritten) as error:
        if hopeless(error):
            with contextlib.suppress(OSError):  # the disk may be full
                Events(output).tell("gave up", reason=str(error))
        raise


def hopeless(error: Exception) -> bool:
    """Return whether the next start would fail in the same way.

    When a worker has died, Ray destroys the process group of the others. PyTorch then raises a `ValueError`, which is
    no mistake of the user's.
    """
    import torch

    return not isinstance(error, ValueError) or torch.distributed.is_initialized()


def gave_up(output: Path) -> str | None:
    """Return why the latest launch gave up; None if it did not."""
    for event in reversed(read_journal(output / EVENTS)):
        if event["event"] == "launch":
            return None
        if event["event"] == "gave up":
            return event["reason"]
    return None


def train(job: TrainingJob, cluster: ClusterConfig, store: Store, must_stop: Callable[[], bool]) -> None:
    """Train on the ranks of an initialised process group; rank 0 writes the model."""
    from cluster.engine.deepspeed_engine import DeepSpeedEngine, prepare_environment

    prepare_environment(cluster.use_gpu, job.train.compile)
    import torch

    from cluster.checkpoints.checkpointer import Checkpointer
    from cluster.checkpoints.distant import DistantCheckpointer
    from cluster.checkpoints.files import Mirror
    from cluster.training.stopping import Watchdog
    from gpt2.model.hardware import peak_flops
    from gpt2.store.remote import RemoteStore
    from gpt2.training.engine import DTYPES
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
        folder, keep = output / "_checkpoints", (job.train.keep_checkpoints, job.train.archive_every)
        if isinstance(store, RemoteStore):  # the store has the copies
            checkpoints: Checkpointer = DistantCheckpointer(
                store.remote, output.name, folder, *keep, header, events, watchdog.alive, None, earlier
            )
        else:
            checkpoints = Checkpointer(folder, *keep, header, events, watchdog.alive, mirror, earlier)
        peak = peak_flops(DTYPES[job.train.precision], engine.device) * engine.world_size
        flops = parts.gpt2.config.flops_per_token(job.train.context, with_head=job.pretrains)
        watchdog.start()
        fit(engine, parts.training, parts.validation, job.train, output, checkpoints, flops, peak, must_stop)
        watchdog.end()
        weights = engine.weights()
        if rank == 0:
            final = build(job)
            final.module.load_state_dict(weights, strict=False)
            aside = output / f"_{MODEL}"
            aside.mkdir(exist_ok=True)
            final.save(aside)
            if store.distant:
                events.tell(TRAINED, model=store.hand(aside))
            else:
                aside.rename(output / MODEL)
        torch.distributed.barrier()


@contextlib.contextmanager
def alone(output: Path) -> Iterator[None]:
    """Wait until the first worker of every other attempt has ended; those of a killed driver may live for some
    seconds."""
    with open(output / "_lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def stop_asked(output: Path) -> Callable[[], bool]:
    """Return a function that says whether the training should stop: for the driver, or because the cluster drains a
    node."""
    # Not `ray.train.get_preemption_info`: it waits until every rank has called it as often. A rank that calls it a step
    # earlier than another would wait forever, because steps wait for all ranks too. The loop itself makes the ranks
    # agree.
    from ray.train.v2._internal.execution.context import get_train_context

    preemption = get_train_context().preemption_context
    return lambda: (output / STOP).exists() or preemption.preemption_info is not None


def identity(job: TrainingJob) -> dict[str, Any]:
    """Return all that a checkpoint's state depends on, as JSON, with inputs by the id of their artifact, not by
    path."""
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
    """Return `kind/id` of the artifact at the path or around it, else the path."""
    for folder in (path, path.parent):
        if manifest := read_manifest(folder):
            return f"{manifest.get('kind')}/{manifest.get('id')}"
    return str(path)
