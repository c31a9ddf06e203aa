"""The driver of a training on Ray: it checks the disk, launches a `TorchTrainer` of `cluster.training.worker`, and
follows it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.checkpoints.files import Mirror, keep_state
from cluster.config import ClusterConfig
from cluster.connect import check_resources, connect
from cluster.engine.deepspeed_engine import accumulation_steps
from cluster.home import ray_folder, store
from cluster.training import worker
from cluster.training.follow import JournalFollower, cause, describe_event, event_key, receiving, record_key
from cluster.training.stopping import stopping, within
from cluster.training.usage import USAGE, Usage
from cluster.training.worker import STOP, TRAINED
from gpt2.store.model_files import MODEL
from gpt2.store.remote import CHECKPOINTS, RemoteStore
from gpt2.training.config import BudgetConfig
from gpt2.training.journal import EVENTS, JOURNAL, Events, read_journal
from gpt2.training_job import TrainingJob


class TrainingFailed(RuntimeError):
    """Raised where the workers failed more often than `cluster.max_failures` allows, or gave up. The message has the
    cause."""


class NotEnoughDisk(ValueError):
    """Raised where the disk has no room for the checkpoints."""


def train(
    job: TrainingJob,
    cluster: ClusterConfig,
    on_record: Callable[[dict[str, Any]], None],
    on_message: Callable[[str], None],
    on_usage: Callable[[dict[str, Any]], None] = lambda sample: None,
    budget: BudgetConfig | None = None,
) -> list[dict[str, Any]]:
    """Train on the cluster from the last complete checkpoint to the end; return the journal.

    The model is then in `job.output/model`. `on_record` gets each line of the journal as it is written, `on_message`
    sentences for the log, and `on_usage` samples of the resources that the processes use.

    At a SIGTERM the workers save and stop at their next step, then this process ends (`stopping`). Where the budget is
    used up they do the same, and `BudgetExceeded` is raised.
    """
    from gpt2.training.engine import decided

    # Decided here, so that all workers use the same precision.
    job = TrainingJob.model_validate({**job.model_dump(), "train": decided(job.train, cluster.use_gpu).model_dump()})
    accumulation_steps(job.train, cluster.num_workers)
    output = Path(job.output)
    check_disk(job, output)
    connect()
    check_resources(cluster)
    begun = time.time()

    def on_event(event: dict[str, Any]) -> None:
        if event["time"] >= begun and (text := describe_event(event)):
            on_message(f"{job.name}: {text}")

    with (
        JournalFollower(output / JOURNAL, record_key, on_record),
        JournalFollower(output / EVENTS, event_key, on_event),
        JournalFollower(output / USAGE, None, on_usage),
    ):
        if not (output / MODEL / "config.json").exists():
            with (
                Usage(output, "driver"),
                stopping(output / STOP) as stopped,
                within(budget or BudgetConfig(), cluster, output / STOP) as check_budget,
            ):
                with receiving(output, worker.gave_up) if store().distant else contextlib.nullcontext() as mailbox:
                    _run(job, cluster, mailbox)
                bring(output)
            if not (output / MODEL / "config.json").exists():
                check_budget()
                stopped()
        if job.train.keep_state:
            if isinstance(place := store(), RemoteStore):
                Mirror(f"{place.remote.url}/{CHECKPOINTS}", output.name, Events(output)).fetch(output / "_checkpoints")
            keep_state(output)
    return read_journal(output / JOURNAL)


def bring(output: Path) -> None:
    """Bring the trained model from a distant store, if the workers have named it there."""
    names = [event["model"] for event in read_journal(output / EVENTS) if event["event"] == TRAINED]
    if names and not (output / MODEL).exists():
        aside = output / f"_{MODEL}"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(store().locate(names[-1]), aside)
        aside.rename(output / MODEL)
        store().forget(names[-1])


def check_disk(job: TrainingJob, output: Path) -> None:
    """Raise `NotEnoughDisk` if the disk has no room for the checkpoints that a run keeps at the same time."""
    if job.model is not None:
        n = job.model.n_parameters
    else:
        weights = Path(job.base or "") / "model.safetensors"
        n = weights.stat().st_size // 4 if weights.exists() else 0
    each = 12 * n if job.adaptation.kind == "full" else 0  # fp32 parameters and two moments; adapters take a few MB
    there = sum(p.stat().st_size for p in output.rglob("*") if p.is_file())
    kept = job.train.keep_checkpoints + 2  # the best, and the one being written
    if job.train.archive_every and job.train.steps:
        kept += job.train.steps // job.train.archive_every
    need, free = kept * each + 4 * n - there, shutil.disk_usage(output).free
    if need > free:
        raise NotEnoughDisk(
            f"{kept} checkpoints of {each:,} bytes and the model need {need:,} bytes in {output}, which has {free:,} "
            f"free; make room, lower keep_checkpoints={job.train.keep_checkpoints} or set GPT2_HOME to a larger disk"
        )


def load() -> None:
    """Import the libraries that launching a training needs. This takes seconds, which can overlap with other starts."""
    import ray.train.torch

    assert ray.train.torch


def _run(job: TrainingJob, cluster: ClusterConfig, mailbox: Any = None) -> None:
    # Imported here because they load PyTorch, which a run with nothing to train does not need.
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

    from cluster.training.follow import TellFailures
    from cluster.training.network import NetworkConfig
    from gpt2.training.engine import HEAP

    class Trainer(TorchTrainer):
        """`TorchTrainer` without Ray Data, which we don't use and whose actors take seconds to start."""

        def _create_default_callbacks(self):
            return [c for c in super()._create_default_callbacks() if not isinstance(c, DatasetsCallback)]

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(cluster.start_timeout_seconds)
    # This limit catches a stopped worker; a hung one ends itself earlier (`cluster.training.stopping`).
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(1.25 * cluster.hang_seconds)
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    threads = str(max(1, int(cluster.cpus_per_worker)))
    output = Path(job.output)
    Events(output).tell("launch", workers=cluster.num_workers, zero_stage=cluster.zero_stage)
    config = {"job": job.moved(store().name).model_dump_json(), "cluster": cluster.model_dump_json()}
    trainer = Trainer(
        worker.work,
        train_loop_config={**config, "store": store(), "mailbox": mailbox},
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cluster.use_gpu else {})},
        ),
        run_config=RunConfig(
            # We resume from our own verified checkpoints, so each attempt gets a new state of Ray's.
            name=f"{job.name}-{os.getpid()}-{time.time_ns()}",
            storage_path=str(ray_folder() / "train"),
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=2),
            callbacks=[TellFailures(str(output))],
            worker_runtime_env={
                "env_vars": {
                    "OMP_NUM_THREADS": threads,
                    "OMP_WAIT_POLICY": "passive",  # waiting threads leave the cores to the other workers
                    "RAY_CHDIR_TO_TRIAL_DIR": "0",
                    **({} if cluster.use_gpu else HEAP),
                }
            },
        ),
        torch_config=NetworkConfig(timeout_s=300),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise TrainingFailed(f"training {job.name!r} failed: {worker.gave_up(output) or cause(error)}") from None
    if reason := worker.gave_up(output):
        raise TrainingFailed(f"training {job.name!r} failed: {reason}")
