"""Muon on real ranks: matrices that no rank holds whole are orthogonalised as if one did."""

import math
from pathlib import Path

import pytest
import torch

from tests.cluster.engine.test_fragments import same
from tests.cluster.engines import backward, engine_of, save, steps
from tests.cluster.ranks import run_ranks
from tests.cluster.test_parity import plain


def differing(engine) -> list[str]:
    """Matrices whose update, from made-up momenta, is not bit by bit that of the whole matrix."""
    from gpt2.training.optimizer import direction, matrices

    fragments, wrong = engine.fragments, []
    whole = {p: n for m in engine.engine.module.modules() for p, n in matrices(m)}
    for parts in sorted(set(whole.values())):
        flats = [flat for flat, group in fragments.flats() if group.get("parts") == parts]
        momenta = [torch.zeros_like(flat, dtype=torch.bfloat16) for flat in flats]
        here = {id(flat): i for i, flat in enumerate(flats)}
        expected = {}
        for name, p in engine.engine.module.named_parameters():
            if whole.get(p) == parts:
                shape = getattr(p, "ds_shape", p.shape)
                momentum = torch.randn(shape, generator=torch.Generator().manual_seed(len(expected))).bfloat16()
                piece = fragments.piece(p)
                expected[name] = piece, direction(momentum, parts).flatten()[piece.start : piece.start + piece.count]
                piece.part_of(momenta[here[id(piece.flat)]]).copy_(
                    momentum.flatten()[piece.start : piece.start + piece.count]
                )
        updates = fragments.inner.directions(flats, momenta, parts)
        wrong += [n for n, (p, e) in expected.items() if not torch.equal(p.part_of(updates[here[id(p.flat)]]), e)]
        assert expected
    return wrong


def lives(folder: Path, stages) -> dict[int, tuple]:
    """Per stage: (wrong updates, losses, norm of a NaN step, losses of another engine from the state before it)."""
    told = {}
    for stage in stages:
        engine = engine_of(stage, kind="muon")
        wrong = differing(engine)
        losses = steps(engine, 0, 3)
        save(engine, folder / f"{stage}-before")
        engine.factor[0] = math.nan if engine.rank == 0 else 1.0
        backward(engine, 99)
        norm = engine.update(1e-2)
        engine.factor[0] = 1.0
        save(engine, folder / f"{stage}-after")
        losses += steps(engine, 3, 6)
        save(engine, folder / f"{stage}-end")
        again = engine_of(stage, kind="muon")
        again.load(folder / f"{stage}-before")
        resumed = steps(again, 3, 6)
        save(again, folder / f"{stage}-end-again")
        told[stage] = wrong, losses, norm, resumed
    return told


@pytest.mark.parametrize(
    ("size", "stages"),
    [(2, (2, 3)), *(pytest.param(n, (0, 1, 2, 3), marks=pytest.mark.chaos) for n in (1, 2, 4))],
)
def test_a_training_with_muon(tmp_path, size, stages):
    expected = plain("fp32", 6, "muon")
    for ranks in run_ranks(size, lives, tmp_path, stages):
        for stage, (wrong, losses, norm, resumed) in ranks.items():
            assert not wrong, stage
            assert not math.isfinite(norm), stage
            assert same(tmp_path / f"{stage}-before", tmp_path / f"{stage}-after"), stage
            assert losses == pytest.approx(expected, rel=5e-4), stage
            assert resumed == losses[3:], stage
            assert same(tmp_path / f"{stage}-end", tmp_path / f"{stage}-end-again"), stage


def mistaken(folder: Path) -> list[str]:
    """What an engine says of another optimizer's state."""
    messages = []
    for kind, other in (("adamw", "muon"), ("muon", "adamw")):
        save(engine_of(2, kind=kind), folder / kind)
        try:
            engine_of(2, kind=other).load(folder / kind)
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_another_optimizers_state_is_refused(tmp_path):
    for messages in run_ranks(2, mistaken, tmp_path):
        assert len(messages) == 2
        assert all("set optimizer.kind to what it was" in message for message in messages)
