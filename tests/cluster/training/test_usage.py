"""A training's budget, its system metrics and its workers' remarks, on a real Ray."""

import json
import logging

import pytest

from cluster.config import ClusterConfig
from cluster.connect import disconnect
from cluster.training import stopping, usage
from cluster.training.follow import PER_MINUTE, describe_event, forwarded_warnings
from cluster.training.launch import train
from cluster.training.stopping import BudgetExceeded
from cluster.training.usage import USAGE, Usage, machine_joules, metrics
from gpt2.training.config import BudgetConfig
from gpt2.training.cost import cost
from gpt2.training.journal import EVENTS, Events, read_journal
from tests.cluster.training.test_launch import inputs, job

__all__ = ["inputs"]  # a fixture


@pytest.mark.slow
def test_a_used_up_budget_stops_after_a_checkpoint_and_the_training_goes_on_later(
    inputs, tmp_path, monkeypatch, request
):
    request.addfinalizer(disconnect)
    cluster = ClusterConfig(num_workers=2, cpus_per_worker=0.5)
    work = job(inputs, tmp_path / "out", steps=4000, epochs=100, eval_every=4000, checkpoint_every=4000, log_every=10)
    monkeypatch.setattr(stopping, "_spent", stopping.Spent())
    samples = []

    def on_record(record):  # workers have begun: whatever the start took is not the point here
        stopping._spent.seconds += 1000

    limit = BudgetConfig(max_seconds=1000, price_per_cpu_hour=3600)
    with pytest.raises(BudgetExceeded, match=r"budget.max_seconds=1000: used up by .* run the same command to go on"):
        train(work, cluster, on_record, print, samples.append, limit)
    with pytest.raises(BudgetExceeded):
        train(work, cluster, on_record, print, samples.append, limit)  # nothing is left for another
    reached = read_journal(tmp_path / "out" / EVENTS)[-1]
    assert reached["event"] == "preempted" and 0 < reached["step"] < 4000
    checkpoints = [p.name for p in (tmp_path / "out" / "_checkpoints").glob("step-*")]
    assert f"step-{reached['step']:08d}" in checkpoints

    assert {s["who"] for s in samples} == {"driver", "rank0", "rank1"}
    took = cost(samples, read_journal(tmp_path / "out" / "journal.jsonl"), limit)
    assert took.tokens > 0 and took.used_cpu_seconds > 0
    assert took.money == pytest.approx(took.cpu_seconds)
    monkeypatch.setattr(stopping, "_spent", stopping.Spent())
    messages = []
    more = job(inputs, tmp_path / "out", steps=reached["step"] + 2, epochs=100)
    journal = train(more, cluster, lambda record: None, messages.append)
    assert journal[-1]["step"] == reached["step"] + 2
    assert any(f"goes on from the checkpoint of step {reached['step']}, 0 steps" in m for m in messages)


def test_system_metrics_are_named_as_mlflow_shows_them(tmp_path):
    with Usage(tmp_path, "rank3", cpus=1) as sampler:
        sum(i * i for i in range(300_000))
        sampler.write_sample()
    first, second, *_ = read_journal(tmp_path / USAGE)
    found = metrics(second, first)
    assert found["system/rank3/cpu_utilization_percentage"] > 0
    assert found["system/rank3/process_memory_usage_megabytes"] > 20
    assert "system/rank3/cpu_utilization_percentage" not in metrics(first, None)
    assert not any("gpu" in name for name in found)


def test_energy_counters_of_packages_add_up(tmp_path, monkeypatch):
    """The files as Linux lays them: packages, and parts of packages, which are not added again."""
    for name, kind, value in (("0", "package-0", 5), ("1", "package-1", 7), ("0:0", "core", 3)):
        folder = tmp_path / f"intel-rapl:{name}"
        folder.mkdir()
        (folder / "name").write_text(kind + "\n")
        (folder / "energy_uj").write_text(f"{value}000000\n")
    monkeypatch.setattr(usage, "RAPL", tmp_path)
    assert machine_joules() == 12
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert machine_joules() is None


def test_remarks_come_with_the_rank_and_without_floods(tmp_path):
    logger = logging.getLogger("some.library")
    with forwarded_warnings(Events(tmp_path), 1):
        logger.warning("the disk is slow")
        logger.info("nothing")
        try:
            raise OSError("no route")
        except OSError:
            logger.exception("upload failed")
        for i in range(100):
            logger.warning("the disk is slow")
            logger.warning("again %d", i)
    logger.warning("later")
    lines = [describe_event(e) for e in read_journal(tmp_path / EVENTS)]
    assert lines[:2] == ["worker 1: warning: the disk is slow", "worker 1: error: upload failed: OSError: no route"]
    assert len(lines) == PER_MINUTE + 1
    assert lines[-1] == f"worker 1: warning: {100 + 100 - (PER_MINUTE - 2)} more such lines"
    assert json.dumps(lines).count("later") == 0
