"""A bad gradient on one worker changes nothing on any, at every ZeRO stage; the next step is as if it had not been."""

import itertools
import math
from pathlib import Path

import pytest

from tests.cluster.engine.test_fragments import same
from tests.cluster.engines import backward, engine_of, save, steps
from tests.cluster.ranks import run_ranks

BAD = {"nan": math.nan, "inf": math.inf, "spike": 1000.0}


def poisoned(folder: Path, stages, precisions, kind: str) -> list[tuple]:
    """(stage, precision, what is bad, norm of the bad step, norm after it, losses with it, losses without)."""
    told = []
    for stage, precision in itertools.product(stages, precisions):
        clean = steps(engine_of(stage, precision, kind=kind), 0, 5)
        for bad, factor in BAD.items():
            name = f"{stage}-{precision}-{bad}"
            engine = engine_of(stage, precision, kind=kind)
            losses = steps(engine, 0, 3)
            save(engine, folder / f"{name}-before")
            engine.factor[0] = factor if engine.rank == engine.world_size - 1 else 1.0
            backward(engine, 99)
            norm = engine.update(1e-2, limit=20.0)
            engine.factor[0] = 1.0
            save(engine, folder / f"{name}-after")
            losses += [backward(engine, 3)]
            healthy = engine.update(1e-2, limit=20.0)
            losses += [backward(engine, 4)]
            told.append((stage, precision, bad, norm, healthy, losses, clean))
    return told


@pytest.mark.parametrize(
    ("stages", "precisions", "kind"),
    [
        ((0, 2), ("fp32",), "adamw"),
        pytest.param((0, 1, 2, 3), ("fp32", "bf16"), "adamw", marks=pytest.mark.chaos),
        pytest.param((0, 1, 2, 3), ("fp32", "bf16"), "muon", marks=pytest.mark.chaos),
    ],
)
def test_bad_step_changes_nothing(tmp_path, stages, precisions, kind):
    for ranks in zip(*run_ranks(2, poisoned, tmp_path, stages, precisions, kind), strict=True):
        for stage, precision, bad, norm, healthy, losses, clean in ranks:
            name = f"{stage}-{precision}-{bad}"
            assert math.isfinite(norm) == (bad == "spike") and not norm <= 20.0, name
            assert 0 < healthy < 20.0, name
            assert same(tmp_path / f"{name}-before", tmp_path / f"{name}-after"), name
            assert losses == clean, name
