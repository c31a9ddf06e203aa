"""Training on Ray, the driver's side: it launches a `TorchTrainer` of `cluster.worker` and follows what it tells."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import worker
from cluster.budget import within
from cluster.config import ClusterConfig
from cluster.connect import check_resources, connect
from cluster.home import ray_folder
from cluster.kept import keep_state
from cluster.stopping import stopping
from cluster.usage import USAGE, Usage
from cluster.worker import STOP
from cluster.zero import accumulation_steps
from gpt2.account import describe_failure
from gpt2.cost import BudgetConfig
from gpt2.jobs import Job
from gpt2.journal import EVENTS, JOURNAL, Events, parse, read_journal
from gpt2.weights import MODEL


class TrainingFailed(RuntimeError):
    """The workers failed more often than `cluster.max_failures` allows, or gave up; the message holds the cause."""


class NotEnoughDisk(ValueError):
    """The checkpoints would not fit."""


def train(
    job: Job,
    cluster: ClusterConfig,
    on_record: Callable[[dict[str, Any]], None],
    on_message: Callable[[str], None],
    on_usage: Callable[[dict[str, Any]], None] = lambda sample: None,
    budget: BudgetConfig | None = None,
) -> list[dict[str, Any]]:
    """Train to the end on the cluster, going on from the last complete checkpoint; the model is in `job.output/model`.

    `on_record` gets each line of the journal as it comes, `on_message` what people should know, `on_usage` samples of
    what its processes use. Returns the journal. A SIGTERM makes the workers save and stop at their next step, and then
    ends this process (`stopping`); so does a used-up budget, with `BudgetExceeded`.
    """
    from gpt2.peak import decided

    # Here, so that all workers compute alike.
    job = Job.model_validate({**job.model_dump(), "train": decided(job.train, cluster.use_gpu).model_dump()})
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
        Follow(output / JOURNAL, record_key, on_record),
        Follow(output / EVENTS, event_key, on_event),
        Follow(output / USAGE, None, on_usage),
    ):
        if not (output / MODEL / "config.json").exists():
            with (
                Usage(output, "driver"),
                stopping(output / STOP) as stopped,
                within(budget or BudgetConfig(), cluster, output / STOP) as check_budget,
            ):
                _run(job, cluster)
            if not (output / MODEL / "config.json").exists():
                check_budget()
                stopped()
        if job.train.keep_state:
            keep_state(output)
    return read_journal(output / JOURNAL)


def check_disk(job: Job, output: Path) -> None:
    """Raise `NotEnoughDisk` where the checkpoints that a run keeps at a time can't fit."""
    if job.model is not None:
        n = job.model.n_parameters
    else:
        weights = Path(job.base or "") / "model.safetensors"
        n = weights.stat().st_size // 4 if weights.exists() else 0
    each = 12 * n if job.adaptation.kind == "full" else 0  # fp32 parameters and two moments; of adapters some MB
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
    """Import what launching a training needs: some seconds, that may be spent while something else starts."""
    import ray.train.torch

    assert ray.train.torch


def _run(job: Job, cluster: ClusterConfig) -> None:
    # Here, because they load PyTorch: a run that has nothing to train need not wait for it.
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

    from cluster.failures import TellFailures
    from gpt2.engine import HEAP

    class Trainer(TorchTrainer):
        """Without Ray Data, which we don't use and whose actors take seconds to start."""

        def _create_default_callbacks(self):
            return [c for c in super()._create_default_callbacks() if not isinstance(c, DatasetsCallback)]

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(cluster.start_timeout_seconds)
    # For a worker that is stopped; one that is stuck ends itself before (`cluster.watchdog`).
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(1.25 * cluster.hang_seconds)
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"
    threads = str(max(1, int(cluster.cpus_per_worker)))
    output = Path(job.output)
    Events(output).tell("launch", workers=cluster.num_workers, zero_stage=cluster.zero_stage)
    trainer = Trainer(
        worker.work,
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
            callbacks=[TellFailures(str(output))],
            worker_runtime_env={
                "env_vars": {
                    "OMP_NUM_THREADS": threads,
                    "OMP_WAIT_POLICY": "passive",  # threads that wait leave the cores to the other workers
                    "RAY_CHDIR_TO_TRIAL_DIR": "0",
                    **({} if cluster.use_gpu else HEAP),
                }
            },
        ),
        torch_config=TorchConfig(timeout_s=300),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise TrainingFailed(f"training {job.name!r} failed: {worker.gave_up(output) or cause(error)}") from None
    if reason := worker.gave_up(output):
        raise TrainingFailed(f"training {job.name!r} failed: {reason}")


def cause(error: BaseException) -> str:
    """The last line of the first failed worker's own error."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, failure = sorted(failures.items())[0]
        return f"worker {rank}: {last_line(failure)}"
    return last_line(error)


def last_line(error: BaseException) -> str:
    """The last line of an error's message, where Python names its class."""
    lines = str(error).strip().splitlines()
    if any(line.startswith("The actor is dead") for line in lines):  # Ray's guesses at why would fill a screen
        return "its process died (killed, out of memory or crashed)"
    if lines and "WORKER_HEALTH_CHECK_TIMEOUT" in lines[-1]:
        return "it does not answer"
    return lines[-1] if lines else type(error).__name__


def describe_event(event: dict[str, Any]) -> str | None:
    """What people should know of an event, None where it is as it should be."""
    match event["event"]:
        case "begin" if event["step"]:
            again = max(0, event["reached"] - event["step"])
            return f"goes on from the checkpoint of step {event['step']}, {again} steps to do again"
        case "failure":
            return f"{describe_failure(event)}; starting again from the last checkpoint"
        case "hang":
            return f"{describe_failure(event)}; its stacks are in {event['stacks']}"
        case "bad step":
            return f"step {event['step']} left out: gradient norm {event['norm']}, limit {event['limit']}"
        case "rollback":
            first, last = event["batches"][0], event["batches"][-1]
            return f"back to step {event['to']}; batches {first} to {last} are not read again"
        case "damaged checkpoint":
            return f"checkpoint refused: {event['reason']}; going back to the one before"
        case "not mirrored":
            return f"{event['path']} was not copied to {event['url']}: {event['reason']}; training goes on without"
        case "fetched":
            return f"{event['path']} fetched from {event['url']}"
        case "changed":
            changes = {k: v for k, v in event.items() if k not in ("event", "time", "step")}
            return "goes on with " + ", ".join(f"{k} {now} (was {was})" for k, (was, now) in changes.items())
        case "remark":
            return f"worker {event['rank']}: {event['level']}: {event['text']}"
        case "preempted":
            return f"asked to stop: saved at step {event['step']}"
    return None


def record_key(record: dict[str, Any]) -> tuple:
    return record["step"], "validation_loss" in record


def event_key(event: dict[str, Any]) -> tuple:
    return event["event"], event["time"]


class Follow:
    """Reads a file of lines while workers write it; each key once, also when a restart writes the steps again."""

    def __init__(
        self,
        path: Path,
        key: Callable[[dict[str, Any]], tuple] | None,
        on_record: Callable[[dict[str, Any]], None],
        every: float = 1.0,
    ):
        """Without a key every line counts: of a file that only grows."""
        self.path, self.key, self.on_record, self.every = path, key, on_record, every
        self.seen: set[tuple] = set()
        self.file, self.offset = 0, 0
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
        for record in self._new():
            key = self.key(record) if self.key else None
            if key not in self.seen:
                if key:
                    self.seen.add(key)
                self.on_record(record)

    def _new(self) -> list[dict[str, Any]]:
        """The lines since the last look: all of a file that was put in the place of the one before."""
        try:
            stream = open(self.path, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            return []
        with stream:
            file = os.fstat(stream.fileno()).st_ino
            if file != self.file:
                self.file, self.offset = file, 0
            stream.seek(self.offset)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return parse(whole)
