"""Training on Ray: the driver launches a `TorchTrainer`; each worker runs `gpt2.train.fit` on a DeepSpeed engine."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.config import ClusterConfig
from cluster.connect import check_resources, connect
from cluster.home import ray_folder
from cluster.zero import accumulation_steps
from gpt2.jobs import JOURNAL, MODEL, Job
from gpt2.journal import read_journal


class TrainingFailed(RuntimeError):
    """The workers failed more often than `cluster.max_failures` allows; the message holds the first cause."""


def train(
    job: Job,
    cluster: ClusterConfig,
    on_record: Callable[[dict[str, Any]], None],
    on_message: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Train to the end on the cluster, going on from the last complete checkpoint; the model is in `job.output/model`.

    `on_record` gets each line of the journal as it comes, `on_message` what people should know. Returns the journal.
    """
    accumulation_steps(job.train, cluster.num_workers)
    connect()
    check_resources(cluster)
    output = Path(job.output)
    with Follow(output / JOURNAL, on_record):
        if not (output / MODEL / "config.json").exists():
            _run(job, cluster, on_message)
    return read_journal(output / JOURNAL)


def load() -> None:
    """Import what launching a training needs: some seconds, that may be spent while something else starts."""
    import ray.train.torch

    assert ray.train.torch


def _run(job: Job, cluster: ClusterConfig, on_message: Callable[[str], None]) -> None:
    # Here, because they load PyTorch: a run that has nothing to train need not wait for it.
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(cluster.start_timeout_seconds)
    threads = str(max(1, int(cluster.cpus_per_worker)))
    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": job.model_dump_json(), "cluster": cluster.model_dump_json()},
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cluster.use_gpu else {})},
        ),
        run_config=RunConfig(
            # Resuming is ours, from checkpoints that verify; Ray's own state is new at each attempt.
            name=f"{job.name}-{os.getpid()}-{time.time_ns()}",
            storage_path=str(ray_folder() / "train"),
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=2),
            worker_runtime_env={
                "env_vars": {
                    "OMP_NUM_THREADS": threads,
                    "OMP_WAIT_POLICY": "passive",  # threads that wait leave the cores to the other workers
                    "RAY_CHDIR_TO_TRIAL_DIR": "0",
                }
            },
        ),
        torch_config=TorchConfig(timeout_s=300),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise TrainingFailed(f"training {job.name!r} failed: {cause(error)}") from None


def cause(error: BaseException) -> str:
    """The last line of the first failed worker's own error."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, failure = sorted(failures.items())[0]
        return f"worker {rank}: {str(failure).strip().splitlines()[-1]}"
    return str(error).strip().splitlines()[-1]


def worker(config: dict[str, str]) -> None:
    """What each worker does: build the job, train, and on rank 0 write the model."""
    job, cluster = Job.model_validate_json(config["job"]), ClusterConfig.model_validate_json(config["cluster"])
    from cluster.engine import DeepSpeedEngine, prepare_environment

    prepare_environment(cluster.use_gpu, job.train.compile)
    import torch

    from cluster.checkpoints import Checkpoints
    from gpt2.engine import DTYPES
    from gpt2.jobs import build
    from gpt2.peak import peak_flops
    from gpt2.train import fit

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    parts = build(job)
    if job.train.compile:
        for block in parts.gpt2.blocks:
            block.compile()
    engine = DeepSpeedEngine(parts.module, job.train, cluster)
    output = Path(job.output)
    if engine.rank == 0:
        lock = open(output / "_lock", "w")  # noqa: SIM115 - held until this process ends
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of a killed driver may live for some seconds more
    header = {"world_size": engine.world_size, "zero_stage": cluster.zero_stage, "job": identity(job)}
    checkpoints = Checkpoints(output / "_checkpoints", job.train.keep_checkpoints, header, warn=print)
    peak = peak_flops(DTYPES[job.train.precision], engine.device) * engine.world_size
    flops = parts.gpt2.config.flops_per_token(job.train.context, with_head=job.name == "base")
    fit(engine, parts.training, parts.validation, job.train, output / JOURNAL, checkpoints, flops, peak)
    weights = engine.weights()
    if engine.rank == 0:
        final = build(job)
        final.module.load_state_dict(weights, strict=False)
        aside = output / f"_{MODEL}"
        aside.mkdir(exist_ok=True)
        final.save(aside)
        aside.rename(output / MODEL)
    torch.distributed.barrier()


def identity(job: Job) -> dict[str, Any]:
    """What a checkpoint's state depends on, as JSON."""
    return json.loads(json.dumps({**job.identity(), "output": None}))


class Follow:
    """Reads a journal while workers write it; each step once, also when a restart writes the steps again."""

    def __init__(self, path: Path, on_record: Callable[[dict[str, Any]], None], every: float = 1.0):
        self.path, self.on_record, self.every = path, on_record, every
        self.seen: set[tuple] = set()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Follow:
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop.set()
        self.thread.join()
        self._read()

    def _follow(self) -> None:
        while not self.stop.wait(self.every):
            self._read()

    def _read(self) -> None:
        for record in read_journal(self.path):
            key = (record["step"], "validation_loss" in record)
            if key not in self.seen:
                self.seen.add(key)
                self.on_record(record)
