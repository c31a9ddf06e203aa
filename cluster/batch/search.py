"""Trials on Ray Tune: asynchronous successive halving (ASHA, Li et al. 2020) on the validation loss."""

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
from cluster.connect import NotEnoughResources, alive, connect
from cluster.home import store
from gpt2 import search
from gpt2.search import Curve
from gpt2.training_job import TrainingJob

LOSS, STEP = "validation_loss", "step"
TUNE = "_tune"
"""Folder of Tune's own files, which we don't read: each candidate writes its own curve."""


class SearchFailed(RuntimeError):
    """Raised where no candidate finished."""


def run(
    jobs: Sequence[TrainingJob],
    steps: int,
    reduction: int,
    parallel: int | None,
    cluster: ClusterConfig,
    out: Path,
    on_message: Callable[[str], None],
) -> list[Curve]:
    """Train the candidates, `parallel` at a time; return their curves of validation loss, in order.

    Candidates are compared after a ninth and a third of all steps (with `reduction` 3). One goes on if it is among
    the best third of those that came so far. A candidate's curve depends on its job alone. Which candidates are
    stopped early depends on which came first: with `parallel` 1 on their order, else partly on chance. A search that
    was killed resumes from the curves of its candidates.
    """
    connect()
    if store().distant and len(alive()) > 1:
        raise ValueError(
            f"GPT2_STORE={store().place}: a search on several nodes needs a folder that all of them see; name one"
        )
    parallel, cpus = shares(parallel, len(jobs), cluster)
    on_message(f"{len(jobs)} candidates, {parallel} at a time, {cpus:g} CPU cores each")
    errors = run_tuner(jobs, steps, reduction, parallel, cpus, cluster.use_gpu, out / TUNE, on_message)
    curves = [Curve.read(Path(job.output)) for job in jobs]
    for number, error in errors.items():
        if not curves[number].ended:
            curves[number].ended, curves[number].reason = True, error
    if not any(curve.ended and curve.reason is None for curve in curves):
        reasons = "; ".join(sorted({curve.reason for curve in curves if curve.reason}))
        raise SearchFailed(f"no candidate finished: {reasons}")
    return curves


def shares(parallel: int | None, count: int, cluster: ClusterConfig) -> tuple[int, float]:
    """Return (candidates at a time, CPU cores of each): as many as the cores allow, or `parallel`.

    Raises `NotEnoughResources` if the cluster can't hold them, because Ray would wait forever.
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
    """The function that Tune runs in each of its actors."""
    from ray import tune

    def report(step: int, loss: float) -> None:
        tune.report({STEP: step, LOSS: loss})

    job = TrainingJob.model_validate_json(config["jobs"][config["number"]])
    search.run(job, config["steps"], report, threads=config["threads"])


def run_tuner(
    jobs: Sequence[TrainingJob],
    steps: int,
    reduction: int,
    parallel: int,
    cpus: float,
    gpu: bool,
    folder: Path,
    on_message: Callable[[str], None],
) -> dict[int, str]:
    """Run the jobs with Tune; return the error of each job that failed, by its number."""
    # Turn off Tune's loggers, which write each result three times, and its tables, which ignore `verbose`.
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    class TrialReporter(tune.Callback):
        """Reports how each candidate ended."""

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
        "threads": max(1, int(cpus)),
    }
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([{"CPU": cpus, "GPU": int(gpu)}])),
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
    """Run `work` in its own thread and return its result, so that a signal ends the wait at once.

    In Ray's own wait, the exception of a signal handler becomes a `SystemError`, and Tune takes Ctrl-C for the end of
    the search. The thread ends with the connection to Ray, or with this process.
    """
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True, name="search").start()
    return result.result()
