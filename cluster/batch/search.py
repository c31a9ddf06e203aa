"""Candidates on Ray, by Ray Tune: asynchronous successive halving (ASHA, Li et al. 2020) on the validation loss."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray

from cluster.config import ClusterConfig
from cluster.connect import NotEnoughResources, connect
from gpt2 import search
from gpt2.search import Curve
from gpt2.training_job import Job

LOSS, STEP = "validation_loss", "step"
TUNE = "_tune"
"""Tune's own files, which nothing is read from: each candidate keeps what it has told."""


class SearchFailed(RuntimeError):
    """No candidate came to its end."""


def run(
    jobs: Sequence[Job],
    steps: int,
    reduction: int,
    parallel: int | None,
    cluster: ClusterConfig,
    out: Path,
    on_message: Callable[[str], None],
) -> list[Curve]:
    """Train the candidates, `parallel` at a time, on `out`'s disk; what each told, in order.

    After a `reduction`-th of all steps, and after the square of that share, a candidate goes on where it is among the
    best 1 / reduction of those that came so far. So what each tells follows from its job alone, but which ones are
    stopped early follows from which came first: with `parallel` 1 that is their order, else chance has a part. A search
    that was killed goes on with what its candidates told.
    """
    connect()
    parallel, cpus = shares(parallel, len(jobs), cluster)
    on_message(f"{len(jobs)} candidates, {parallel} at a time, {cpus:g} CPU cores each")
    errors = run_tuner(jobs, steps, reduction, parallel, cpus, cluster.use_gpu, out / TUNE, on_message)
    curves = [Curve.read(Path(job.output)) for job in jobs]
    for number, error in errors.items():
        if not curves[number].ended:
            curves[number].ended, curves[number].reason = True, error
    if not any(curve.ended and curve.reason is None for curve in curves):
        reasons = "; ".join(sorted({curve.reason for curve in curves if curve.reason}))
        raise SearchFailed(f"no candidate came to its end: {reasons}")
    return curves


def shares(parallel: int | None, count: int, cluster: ClusterConfig) -> tuple[int, float]:
    """(candidates at a time, CPU cores of each): as many as the cores allow, or what of them is asked for.

    `NotEnoughResources` where the cluster can't hold them: Ray would wait for ever.
    """
    have = ray.cluster_resources()
    cores, gpus = have.get("CPU", 0), have.get("GPU", 0)
    most = int(gpus if cluster.use_gpu else cores / cluster.cpus_per_worker)
    if parallel is None:
        parallel = min(count, most)
    cpus = cluster.cpus_per_worker if cluster.use_gpu else max(cluster.cpus_per_worker, cores // max(parallel, 1))
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    cpus = min(cpus, largest)
    if not 0 < parallel <= most or cpus < cluster.cpus_per_worker:
        raise NotEnoughResources(
            f"parallel={parallel} candidates of cluster.cpus_per_worker={cluster.cpus_per_worker:g} don't fit on a "
            f"cluster of {cores:g} CPUs and {gpus:g} GPUs (use_gpu={str(cluster.use_gpu).lower()}); lower them, or add "
            f"nodes"
        )
    return parallel, cpus


def trainable(config: dict[str, Any]) -> None:
    """What Tune runs in each of its actors."""
    from ray import tune

    def report(step: int, loss: float) -> None:
        tune.report({STEP: step, LOSS: loss})

    job = Job.model_validate_json(config["jobs"][config["number"]])
    search.run(job, config["steps"], report, config["device"], config["threads"])


def run_tuner(
    jobs: Sequence[Job],
    steps: int,
    reduction: int,
    parallel: int,
    cpus: float,
    gpu: bool,
    folder: Path,
    on_message: Callable[[str], None],
) -> dict[int, str]:
    """Let Tune run the jobs; why each failed that did, by its place."""
    # Neither Tune's loggers, which write each result thrice, nor its tables, whatever `verbose` says.
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    class TrialReporter(tune.Callback):
        """Tells how each candidate ended."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            number, last = trial.config["number"], trial.last_result
            loss = last.get(LOSS, search.WORST)
            figures = f"validation loss {loss:.4f}" if loss < search.WORST else "failed"
            on_message(f"candidate {number}: step {last.get(STEP, 0)} of {steps}, {figures}")

    shutil.rmtree(folder, ignore_errors=True)
    space = {
        "number": tune.grid_search(list(range(len(jobs)))),
        "jobs": [job.model_dump_json() for job in jobs],
        "steps": steps,
        "device": "cuda" if gpu else "cpu",
        "threads": max(1, int(cpus)),
    }
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": cpus, "gpu": int(gpu)}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=LOSS,
            mode="min",
            scheduler=ASHAScheduler(
                time_attr=STEP,
                max_t=steps,
                grace_period=search.interval(steps, reduction),
                reduction_factor=reduction,
            ),
            max_concurrent_trials=parallel,
            reuse_actors=True,  # a process takes seconds to start
            trial_dirname_creator=lambda trial: f"{trial.config['number']:03d}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(folder),
            verbose=0,
            callbacks=[TrialReporter()],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    return {
        result.config["number"]: str(result.error).strip().splitlines()[-1]
        for result in in_thread(tuner.fit)
        if result.error is not None and result.config is not None
    }


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns, from a thread of its own: a signal ends the wait for it at once.

    In Ray's own waiting the exception of a handler becomes a `SystemError`, and Tune takes a Ctrl-C for the end of a
    search. The thread ends with the connection to Ray, or with this process.
    """
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True, name="search").start()
    return result.result()
