"""A refresh on real ranks: stopped, and gone on with at another world size and ZeRO stage."""

from pathlib import Path

import pytest

from gpt2.training_job import TrainingJob
from tests.cluster.ranks import run_ranks
from tests.gpt2.data.test_mixture import job_in


def trained(job: TrainingJob, folder: Path, stage: int, stop_at: int | None = None) -> None:
    """Train, from the checkpoint in the folder if there is one, to the end or to that step."""
    from cluster.checkpoints.checkpointer import Checkpointer
    from cluster.config import ClusterConfig
    from cluster.engine.deepspeed_engine import DeepSpeedEngine
    from cluster.training.worker import identity
    from gpt2.training.guard import Preempted
    from gpt2.training.journal import Events
    from gpt2.training.loop import fit
    from gpt2.training_job import build

    parts = build(job)
    engine = DeepSpeedEngine(parts.module, job.train, ClusterConfig(zero_stage=stage))
    events = Events(folder if engine.rank == 0 else None)
    checkpoints = Checkpointer(folder / "_checkpoints", 2, None, {"job": identity(job)}, events)
    asked = iter(range(1, 1000))
    try:
        fit(
            engine, parts.training, parts.validation, job.train, folder, checkpoints,
            must_stop=lambda: next(asked) == stop_at,
        )  # fmt: skip
    except Preempted:
        assert stop_at


def losses(folder: Path) -> list[float]:
    from gpt2.training.journal import JOURNAL, read_journal

    return [r["loss"] for r in read_journal(folder / JOURNAL) if "loss" in r]


@pytest.mark.slow
def test_the_same_losses_at_any_world_size_and_stage_stopped_or_not(tmp_path):
    job = job_in(tmp_path)
    whole, again = tmp_path / "whole", tmp_path / "again"
    for folder in (whole, again):
        folder.mkdir()
    run_ranks(1, trained, job, whole, 0)
    # Two workers, then one, then two again: another stage each.
    run_ranks(2, trained, job, again, 3, 7)
    assert len(losses(again)) == 7
    run_ranks(1, trained, job, again, 2, 5)
    run_ranks(2, trained, job, again, 1)
    expected = losses(whole)
    assert len(expected) == job.train.steps > 20
    assert losses(again) == pytest.approx(expected, rel=1e-5)
    # Stopped and gone on with as before: bit by bit.
    same = tmp_path / "same"
    same.mkdir()
    run_ranks(1, trained, job, same, 0, 9)
    run_ranks(1, trained, job, same, 0)
    assert losses(same) == expected
