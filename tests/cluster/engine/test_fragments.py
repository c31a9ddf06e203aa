"""The training state goes from any number of ranks and any ZeRO stage to any other, bit by bit."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.cluster.engines import engine_of, save, steps
from tests.cluster.ranks import run_ranks

SAVED_AT = 3


def begin(folder: Path, stages, precision: str, last: int, kind: str) -> dict[int, list[float]]:
    """Per stage: train, save at SAVED_AT, train to the end; the losses after the save."""
    losses = {}
    for stage in stages:
        engine = engine_of(stage, precision, kind=kind)
        steps(engine, 0, SAVED_AT)
        save(engine, folder / f"{engine.world_size}-{stage}")
        losses[stage] = steps(engine, SAVED_AT, last)
        save(engine, folder / f"{engine.world_size}-{stage}-end")
    return losses


def go_on(folder: Path, origins, stages, precision: str, last: int, kind: str) -> dict[tuple, list[float]]:
    """Per stage and origin: load, save again, train to the end, save; the losses."""
    losses = {}
    for stage in stages:
        engine = engine_of(stage, precision, kind=kind)
        for origin in origins:
            engine.load(folder / origin)
            save(engine, folder / f"{origin}-to-{engine.world_size}-{stage}")
            losses[origin, stage] = steps(engine, SAVED_AT, last)
            save(engine, folder / f"{origin}-to-{engine.world_size}-{stage}-end")
    return losses


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """The state that a checkpoint's fragments make, put together by a plain loop."""
    pieces: dict[str, list] = {}
    for path in sorted(folder.glob("state-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            for key in file.keys():  # noqa: SIM118 - not a dictionary
                pieces.setdefault(key, []).append((state["starts"][key.split("/")[1]], file.get_tensor(key).flatten()))
    return {key: torch.cat([p for _, p in sorted(parts, key=lambda x: x[0])]) for key, parts in pieces.items()}


def same(one: Path, other: Path) -> bool:
    a, b = whole(one), whole(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


ALL = ((0, 1, 2, 3), (1, 2, 4), ["1-0", "2-1", "2-2", "4-3", "4-2", "2-3"])
SOME = ((1, 3), (1, 2), ["1-3", "2-1"])


@pytest.mark.parametrize(
    ("precision", "kind", "tolerance", "last", "stages", "sizes", "origins"),
    [
        ("fp32", "adamw", 1e-5, 8, *SOME),
        pytest.param("fp32", "adamw", 1e-5, 33, *ALL, marks=pytest.mark.chaos),
        pytest.param("bf16", "adamw", 2e-2, 33, *ALL, marks=pytest.mark.chaos),
        pytest.param("fp32", "muon", 2e-2, 33, *ALL, marks=pytest.mark.chaos),
        pytest.param("bf16", "muon", 2e-2, 33, *ALL, marks=pytest.mark.chaos),
    ],
)
def test_state_goes_anywhere(tmp_path, precision, kind, tolerance, last, stages, sizes, origins):
    """Saved by so many ranks at a stage, a state goes on at any number of ranks and any stage."""
    unbroken = {}
    for size in sizes:
        ranks = run_ranks(size, begin, tmp_path, stages, precision, last, kind)
        unbroken |= {f"{size}-{stage}": ranks[0][stage] for stage in stages}
    for size in sizes:
        here = [*origins, *(f"{size}-{s}" for s in stages if f"{size}-{s}" not in origins)]
        losses = run_ranks(size, go_on, tmp_path, here, stages, precision, last, kind)[0]
        for origin, stage in itertools.product(here, stages):
            target = f"{origin}-to-{size}-{stage}"
            assert same(tmp_path / origin, tmp_path / target), target
            assert losses[origin, stage] == pytest.approx(unbroken[origin], rel=tolerance), target
            if origin == f"{size}-{stage}":  # the same place: the very same bits
                assert losses[origin, stage] == unbroken[origin], target
                assert same(tmp_path / f"{origin}-end", tmp_path / f"{target}-end"), target


def refused(folder: Path) -> list[str]:
    engine, messages = engine_of(2), []
    steps(engine, 0, 1)
    save(engine, folder / "good")
    for damage in ("missing", "empty"):
        bad = folder / damage
        if engine.rank == 0:
            bad.mkdir()
            if damage == "missing":
                (bad / "state-00000-of-00002.safetensors").write_bytes(
                    (folder / "good" / "state-00000-of-00002.safetensors").read_bytes()
                )
        torch.distributed.barrier()
        try:
            engine.load(bad)
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_what_is_not_whole_is_refused(tmp_path):
    for messages in run_ranks(2, refused, tmp_path):
        missing, empty = messages
        assert "values" in missing and "missing" in missing
        assert "has no state-" in empty
