"""Muon on sharded matrices: each matrix is gathered on one rank, which orthogonalises it and sends the pieces back.

DeepSpeed's own Muon orthogonalises gradients before it checks their norm. So a bad step would change the momentum, and
the norm would be that of the updates. Here Muon is part of the optimizer's step, at every stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.engine.fragments import Fragments
from gpt2.training.optimizer import direction


@dataclass(frozen=True)
class Share:
    """A rank's share of a matrix: `count` values from `start`, at `place` of tensor `flat`. Matrix and tensor are
    numbered."""

    matrix: int
    flat: int
    place: int
    start: int
    count: int

    def part_of(self, flat: Tensor) -> Tensor:
        return flat[self.place : self.place + self.count]

    def part_of_matrix(self, matrix: Tensor) -> Tensor:
        return matrix[self.start : self.start + self.count]


class Exchange:
    """`gpt2.training.optimizer.directions` for the sharded tensors of a DeepSpeed engine, at every ZeRO stage.

    A collective: all ranks call it for the same groups.
    """

    def __init__(self, fragments: Fragments, shapes: dict[nn.Parameter, torch.Size], device: torch.device):
        """`shapes` are those of the full matrices, which are gathered on `device`."""
        self.rank, self.ranks, self.device = fragments.rank, range(fragments.world_size), device
        self.empty = torch.empty(0, dtype=torch.bfloat16, device=device)
        self.shapes = list(shapes.values())
        self.number = {id(flat): i for i, (flat, _) in enumerate(fragments.flats())}
        pieces = [fragments.piece(parameter) for parameter in shapes]
        own = [Share(i, self.number[id(p.flat)], p.place, p.start, p.count) for i, p in enumerate(pieces) if p.count]
        self.shares: list[list[Share]] = [[] for _ in self.ranks]
        """The shares of every rank."""
        dist.all_gather_object(self.shares, own)
        self.owners, self.alone = self._assign()

    def _assign(self) -> tuple[list[int], list[bool]]:
        """Return (the rank that orthogonalises each matrix, whether that rank holds all of it).

        Ranks that hold a whole matrix come first; among them the one with the least work takes it.
        """
        work, owners, alone = [0 for _ in self.ranks], [], []
        for i, shape in enumerate(self.shapes):
            full = [r for r in self.ranks if any(s.matrix == i and s.count == shape.numel() for s in self.shares[r])]
            owner = min(full or self.ranks, key=lambda r: work[r])
            work[owner] += shape.numel() * min(shape)
            owners.append(owner)
            alone.append(bool(full))
        return owners, alone

    def __call__(self, parameters: list[Tensor], momenta: list[Tensor], parts: int) -> list[Tensor]:
        numbers = [self.number[id(parameter)] for parameter in parameters]
        held = {number: momentum.flatten() for number, momentum in zip(numbers, momenta, strict=True)}

        def shares(holder: int, owner: int, needed: bool) -> list[Share]:
            """Return a rank's shares of an owner's matrices; if `needed`, without matrices that the owner holds
            whole."""
            return [
                s
                for s in self.shares[holder]
                if s.flat in held
                and self.owners[s.matrix] == owner
                and not (needed and self.alone[s.matrix] and holder != owner)
            ]

        sent = [[s.part_of(held[s.flat]) for s in shares(self.rank, owner, True)] for owner in self.ranks]
        wholes: dict[int, Tensor] = {}
        for share, values in self._exchange(sent, [shares(holder, self.rank, True) for holder in self.ranks]):
            if share.matrix not in wholes:
                wholes[share.matrix] = values.new_empty(self.shapes[share.matrix].numel())
            share.part_of_matrix(wholes[share.matrix]).copy_(values)
        for i, whole in wholes.items():
            wholes[i] = direction(whole.view(self.shapes[i]), parts).flatten()
        sent = [[s.part_of_matrix(wholes[s.matrix]) for s in shares(holder, self.rank, False)] for holder in self.ranks]
        updates = {number: torch.zeros_like(momentum) for number, momentum in held.items()}
        for share, values in self._exchange(sent, [shares(self.rank, owner, False) for owner in self.ranks]):
            share.part_of(updates[share.flat]).copy_(values)
        return [updates[n].view_as(parameter) for n, parameter in zip(numbers, parameters, strict=True)]

    def _exchange(self, sent: list[list[Tensor]], due: list[list[Share]]) -> Iterator[tuple[Share, Tensor]]:
        """Send tensors to each rank; yield the shares received from each rank, with their values."""
        sizes = [sum(tensor.numel() for tensor in tensors) for tensors in sent]
        outgoing = torch.cat([self.empty, *(t.to(self.device) for tensors in sent for t in tensors)])
        shares = [share for from_one in due for share in from_one]
        incoming = outgoing.new_empty(sum(share.count for share in shares))
        dist.all_to_all_single(incoming, outgoing, [sum(s.count for s in from_one) for from_one in due], sizes)
        yield from zip(shares, incoming.split([share.count for share in shares]), strict=True)
