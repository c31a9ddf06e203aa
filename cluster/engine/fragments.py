"""A rank's share of the training state as named fragments of parameters, in safetensors.

DeepSpeed's checkpoints are pickles for one world size and one ZeRO stage. Here each rank writes its pieces of the fp32
parameters and moments, with their position. Any number of ranks at any stage restores them bit by bit. Frozen
parameters are left out, because they come from the base model. This follows DeepSpeed's universal checkpoints (Lian et
al. 2024, arXiv:2406.18820), without the conversion step.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gpt2.model.hardware import CPU
from gpt2.training.engine import trained

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""The moments of AdamW; Muon has the first one only."""
SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""The state of fp16's dynamic loss scale."""


class Saved:
    """The fragments that any number of ranks wrote into a folder; raises `ValueError` if there are none."""

    def __init__(self, directory: Path):
        self.directory = directory
        paths = sorted(directory.glob("state-*.safetensors"))
        if not paths:
            raise ValueError(
                f"{directory}: has no state-*.safetensors of this version; give the folder of a checkpoint"
            )
        self.files = [safe_open(path, framework="pt") for path in paths]
        self.states = [json.loads(file.metadata()["state"]) for file in self.files]
        self.keys = [set(file.keys()) for file in self.files]
        self.step: int = self.states[0]["step"]
        """The optimizer's number of steps."""
        self.scale: dict[str, float] = self.states[0]["scale"]

    def names(self) -> list[str]:
        """Return the names of all parameters."""
        return sorted({key.split("/", 1)[1] for keys in self.keys for key in keys})

    def kinds(self, name: str) -> set[str]:
        """Return the kinds of values (master, moments) that a parameter has."""
        return {kind for kind in (MASTER, *MOMENTS) for keys in self.keys if f"{kind}/{name}" in keys}

    def full(self, kind: str, name: str, size: int) -> Tensor:
        """Return all fp32 values of a parameter or moment, flat (`size`); raises `ValueError` if some are missing."""
        whole, filled = torch.empty(size, dtype=torch.float32), 0
        for file, state, present in zip(self.files, self.states, self.keys, strict=True):
            if f"{kind}/{name}" in present:
                part = file.get_tensor(f"{kind}/{name}").flatten()
                start = state["starts"][name]
                if start + part.numel() > size:
                    raise ValueError(f"{kind} of {name} in {self.directory} has another shape than the model's")
                whole[start : start + part.numel()] = part
                filled += part.numel()
        if filled != size:
            raise ValueError(f"{kind} of {name} in {self.directory} has {filled:,} of {size:,} values")
        return whole


@dataclass(frozen=True)
class Piece:
    """A rank's share of a parameter: `count` values from `start`, at `place` of the optimizer's tensor `flat`."""

    flat: Tensor
    place: int
    start: int
    count: int

    def part_of(self, values: Tensor) -> Tensor:
        """Return the piece's part (`count`) of values with the layout of `flat`, such as a moment."""
        return values.view(-1)[self.place : self.place + self.count]


class Fragments:
    """Reads and writes the fp32 parameters and moments of a DeepSpeed engine, at every ZeRO stage."""

    def __init__(self, engine: Any):
        self.engine, self.wrapper = engine, engine.optimizer
        self.stage: int = engine.zero_optimization_stage()
        self.inner: torch.optim.Optimizer = getattr(self.wrapper, "optimizer", self.wrapper)
        self.group_of = {p: i for i, group in enumerate(getattr(self.wrapper, "bit16_groups", [])) for p in group}
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()

    def snapshot(self) -> Callable[[Path], Path]:
        """Copy this rank's fragments; return a function that writes them into a folder, in any thread, and returns the
        file."""
        step = self._step()
        if step is None:  # every step so far was skipped
            step = 0
            self._make_moments(0)
        tensors, starts = {}, {}
        for name, parameter in trained(self.engine.module):
            piece = self.piece(parameter)
            if piece.count and (self.stage or self.rank == 0):  # without ZeRO all ranks have the same values
                starts[name] = piece.start
                for kind, values in self._values(piece.flat).items():
                    tensors[f"{kind}/{name}"] = piece.part_of(values).detach().to(CPU, copy=True)
        state = json.dumps({"step": step, "starts": starts, "scale": self._scale()})
        file = f"state-{self.rank:05d}-of-{self.world_size:05d}.safetensors"

        def write(directory: Path) -> Path:
            path = directory / file
            try:
                save_file(tensors, path, metadata={"state": state})
            except SafetensorError as error:  # its only error for a full disk
                raise OSError(errno.EIO, str(error), str(path)) from error
            with safe_open(path, framework="pt") as written:  # compare the disk's content with the tensors
                for name, tensor in tensors.items():
                    if not torch.equal(written.get_tensor(name).view(torch.int32), tensor.view(torch.int32)):
                        raise OSError(f"{path}: {name} differs from the values written; check the disk")
            return path

        return write

    def load(self, directory: Path) -> None:
        """Load the fragments that any number of ranks wrote.

        Raises `ValueError` if a parameter is incomplete, or if the moments are those of another optimizer.
        """
        saved = Saved(directory)
        self._make_moments(saved.step)
        with torch.no_grad():
            for name, parameter in trained(self.engine.module):
                size = getattr(parameter, "ds_numel", parameter.numel())
                piece = self.piece(parameter)
                wanted = self._values(piece.flat)
                if (other := saved.kinds(name)) and other != wanted.keys():
                    raise ValueError(
                        f"{directory} has {', '.join(sorted(other))} of {name}, but the optimizer needs "
                        f"{', '.join(sorted(wanted))}; set optimizer.kind to what it was"
                    )
                for kind, values in wanted.items():
                    whole = saved.full(kind, name, size)
                    piece.part_of(values).copy_(whole[piece.start : piece.start + piece.count])
                    if kind == MASTER:
                        self._follow(parameter, piece, whole)
        for name in self._scale():
            if name in saved.scale:
                setattr(self._scaler(), name, saved.scale[name])

    def forget_steps(self) -> None:
        """Forget the steps that DeepSpeed took while it made the optimizer; Adam's bias correction would be too
        weak."""
        if self.stage == 0:
            self.inner.state.clear()

    def _scaler(self) -> Any:
        """Return fp16's dynamic loss scaler: ZeRO's, or that of stage 0."""
        return getattr(self.wrapper, "loss_scaler", None) or getattr(self.wrapper, "loss_scale_config", None)

    def _scale(self) -> dict[str, float]:
        if not self.engine.fp16_enabled():
            return {}
        return {name: getattr(self._scaler(), name) for name in SCALE if hasattr(self._scaler(), name)}

    def flats(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yield (tensor that the inner optimizer updates, its group), in an order that all ranks share."""
        if self.stage == 3:
            for i, flat in enumerate(self.wrapper.fp32_partitioned_groups_flat):
                yield flat, self.inner.param_groups[self.wrapper.sub_group_to_group_id[i]]
        else:
            yield from ((p, group) for group in self.inner.param_groups for p in group["params"])

    def piece(self, parameter: Any) -> Piece:
        """Return this rank's share of a parameter; its `count` is 0 if the rank has none."""
        if self.stage == 3:
            group, place, width = self.wrapper.grad_position[self.wrapper.get_param_id(parameter)]
            start = width * self.rank  # the last rank's piece is padded
            count = max(0, min(width, parameter.ds_numel - start))
            return Piece(self.wrapper.fp32_partitioned_groups_flat[group], place, start, count)
        if self.stage in (1, 2):
            flat = self.wrapper.single_partition_of_fp32_groups[self.group_of[parameter]]
            if (mapping := parameter._hp_mapping) is None:
                return Piece(flat, 0, 0, 0)
            here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
            return Piece(flat, here.start, there.start, there.numel)
        return Piece(self.masters().get(parameter, parameter), 0, 0, parameter.numel())

    def _values(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the fp32 values behind an optimizer's tensor by kind: master and moments."""
        return {MASTER: flat.data} | {
            kind: v for kind in MOMENTS if (v := self.inner.state[flat].get(kind)) is not None
        }

    def _step(self) -> int | None:
        steps = {int(s["step"]) for flat, _ in self.flats() if (s := self.inner.state.get(flat))}
        return max(steps) if steps else None

    def _make_moments(self, step: int) -> None:
        """Make the optimizer's state, which it would make at its first step only."""
        for flat, group in self.flats():
            state = self.inner.state[flat]
            state["step"] = torch.tensor(float(step), device=flat.device)
            for kind in MOMENTS[:1] if group.get("parts") else MOMENTS:
                if kind not in state:
                    state[kind] = torch.zeros_like(flat.data)

    def _follow(self, parameter: Any, piece: Piece, whole: Tensor) -> None:
        """Copy the values of its master into the parameter."""
        if self.stage == 3:
            parameter.ds_tensor.data[: piece.count].copy_(whole[piece.start : piece.start + piece.count])
            if parameter.data.numel() == whole.numel():  # small ones are not sharded
                parameter.data.copy_(whole.view_as(parameter))
        else:
            parameter.data.copy_(whole.view_as(parameter))

    def masters(self) -> dict[nn.Parameter, Tensor]:
        """Return each parameter's fp32 copy at ZeRO 0 with 16 bits, where DeepSpeed's own accessor fails; else {}."""
        low, high = getattr(self.wrapper, "fp16_groups", None), getattr(self.wrapper, "fp32_groups", None)
        if self.stage or low is None or high is None:
            return {}
        return {p: m for ps, ms in zip(low, high, strict=True) for p, m in zip(ps, ms, strict=True)}
