"""A rank's share of the training state as named fragments of parameters, in safetensors.

DeepSpeed's own checkpoints are pickles that fit one world size and one ZeRO stage. Here each rank writes the pieces
of the fp32 parameters and Adam moments that it holds, with their place in the whole; any number of ranks at any
stage puts them together again, bit by bit. Frozen parameters are left out: they come from the base model. This is the
idea of DeepSpeed's universal checkpoints (Lian et al. 2024, arXiv:2406.18820) without the conversion between.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gpt2.engine import trained

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What fp16's dynamic loss scale remembers."""


class Saved:
    """The fragments that any number of ranks wrote into a folder; `ValueError` where there are none."""

    def __init__(self, directory: Path):
        self.directory = directory
        paths = sorted(directory.glob("state-*.safetensors"))
        if not paths:
            raise ValueError(f"{directory} holds no state-*.safetensors; it is not a checkpoint of this version")
        self.files = [safe_open(path, framework="pt") for path in paths]
        self.states = [json.loads(file.metadata()["state"]) for file in self.files]
        self.keys = [set(file.keys()) for file in self.files]
        self.step: int = self.states[0]["step"]
        """Adam's."""
        self.scale: dict[str, float] = self.states[0]["scale"]

    def names(self) -> list[str]:
        """Of all parameters."""
        return sorted({key.split("/", 1)[1] for keys in self.keys for key in keys})

    def whole(self, kind: str, name: str, size: int) -> Tensor:
        """All `size` fp32 values of a parameter or moment, flat; `ValueError` where some are missing."""
        whole, found = torch.empty(size, dtype=torch.float32), 0
        for file, state, present in zip(self.files, self.states, self.keys, strict=True):
            if f"{kind}/{name}" in present:
                part = file.get_tensor(f"{kind}/{name}").flatten()
                start = state["starts"][name]
                if start + part.numel() > size:
                    raise ValueError(f"{kind} of {name} in {self.directory} has another shape than the model's")
                whole[start : start + part.numel()] = part
                found += part.numel()
        if found != size:
            raise ValueError(f"{kind} of {name} in {self.directory} has {found:,} of {size:,} values")
        return whole


class Fragments:
    """Reads and writes the fp32 parameters and moments behind a DeepSpeed engine, at every ZeRO stage."""

    def __init__(self, engine: Any):
        self.engine, self.wrapper = engine, engine.optimizer
        self.stage: int = engine.zero_optimization_stage()
        self.inner: torch.optim.Optimizer = getattr(self.wrapper, "optimizer", self.wrapper)
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()

    def snapshot(self) -> Callable[[Path], Path]:
        """Copy this rank's fragments; the result writes them into a folder, in any thread, and returns the file."""
        step = self._adam_step()
        if step is None:  # every step so far was skipped
            step = 0
            self._make_moments(0)
        self._link()
        tensors, starts = {}, {}
        for name, parameter in trained(self.engine.module):
            for kind in (MASTER, *MOMENTS):
                start, value = self._held(parameter, kind)
                if value is not None and value.numel():
                    tensors[f"{kind}/{name}"] = value.detach().to("cpu", copy=True).contiguous()
                    starts[name] = start
        state = json.dumps({"step": step, "starts": starts, "scale": self._scale()})
        file = f"state-{self.rank:05d}-of-{self.world_size:05d}.safetensors"

        def write(directory: Path) -> Path:
            path = directory / file
            try:
                save_file(tensors, path, metadata={"state": state})
            except SafetensorError as error:  # its only word for a full disk
                raise OSError(errno.EIO, str(error), str(path)) from error
            with safe_open(path, framework="pt") as written:  # what the disk has, against what it was given
                for name, tensor in tensors.items():
                    if not torch.equal(written.get_tensor(name).view(torch.int32), tensor.view(torch.int32)):
                        raise OSError(f"{path} does not hold what was written to it: {name} differs")
            return path

        return write

    def load(self, directory: Path) -> None:
        """Read what any number of ranks wrote; `ValueError` where a parameter is not there whole."""
        saved = Saved(directory)
        self._make_moments(saved.step)
        with torch.no_grad():
            for name, parameter in trained(self.engine.module):
                size = getattr(parameter, "ds_numel", parameter.numel())
                for kind in (MASTER, *MOMENTS):
                    self._put(parameter, kind, saved.whole(kind, name, size))
        for name in self._scale():
            if name in saved.scale:
                setattr(self._scaler(), name, saved.scale[name])

    def forget_steps(self) -> None:
        """Undo what an optimizer counted while it was made: Adam's correction of its first steps would be too weak."""
        if self.stage == 0:
            self.inner.state.clear()

    def _scaler(self) -> Any:
        """fp16's dynamic loss scale: ZeRO's, or that of stage 0."""
        return getattr(self.wrapper, "loss_scaler", None) or getattr(self.wrapper, "loss_scale_config", None)

    def _scale(self) -> dict[str, float]:
        if not self.engine.fp16_enabled():
            return {}
        return {name: getattr(self._scaler(), name) for name in SCALE if hasattr(self._scaler(), name)}

    def _flats(self) -> Iterator[nn.Parameter]:
        """What the inner optimizer steps on."""
        if self.stage == 3:
            yield from self.wrapper.fp32_partitioned_groups_flat
        else:
            yield from (p for group in self.inner.param_groups for p in group["params"])

    def _adam_step(self) -> int | None:
        steps = {int(s["step"]) for flat in self._flats() if (s := self.inner.state.get(flat))}
        return max(steps) if steps else None

    def _make_moments(self, step: int) -> None:
        """Adam makes its state at its first step; here it is needed before."""
        for flat in self._flats():
            self.inner.state[flat] = {
                "step": torch.tensor(float(step), device=flat.device),
                **{kind: torch.zeros_like(flat.data) for kind in MOMENTS},
            }
        self._link()

    def _link(self) -> None:
        """Tell ZeRO 1 and 2 of the moments: DeepSpeed does when its first group has some, before the second."""
        if self.stage in (1, 2):
            self.wrapper._hp_optimizer_states_linked = False
            self.wrapper._lazy_init_hp_params_optimizer_state()

    def _held(self, parameter: Any, kind: str) -> tuple[int, Tensor | None]:
        """(place of the first value, flat values) of this rank's piece of a parameter; None where it has none."""
        key = None if kind == MASTER else kind
        if self.stage == 3:
            from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

            width = parameter.ds_tensor.numel()  # the last rank's piece is padded
            start = width * self.rank
            value = safe_get_local_optimizer_state(parameter, key) if key else safe_get_local_fp32_param(parameter)
            return start, value.flatten()[: max(0, parameter.ds_numel - start)]
        if self.stage in (1, 2):
            mapping = parameter._hp_mapping
            return (0, None) if mapping is None else (mapping.lp_fragment_address.start, mapping.get_hp_fragment(key))
        master = self.masters().get(parameter, parameter)
        value = self.inner.state[master][key] if key else master.data
        return 0, value.flatten() if self.rank == 0 else None

    def _put(self, parameter: Any, kind: str, whole: Tensor) -> None:
        """Take this rank's piece out of a whole parameter or moment; a parameter's own values follow the master's."""
        key = None if kind == MASTER else kind
        if self.stage == 3:
            from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

            width = parameter.ds_tensor.numel()
            padded = torch.zeros(width * self.world_size)
            padded[: whole.numel()] = whole
            piece = padded[width * self.rank : width * (self.rank + 1)]
            if key:
                safe_set_local_optimizer_state(parameter, piece, key)
                return
            safe_set_local_fp32_param(parameter, piece)
            parameter.ds_tensor.data.copy_(piece)
            if parameter.data.numel() == whole.numel():  # small ones stay whole on every rank
                parameter.data.copy_(whole.view_as(parameter))
            return
        if self.stage in (1, 2):
            if (mapping := parameter._hp_mapping) is not None:
                held = mapping.lp_fragment_address
                mapping.get_hp_fragment(key).data.copy_(whole[held.start : held.start + held.numel])
        else:
            master = self.masters().get(parameter, parameter)
            (self.inner.state[master][key] if key else master.data).copy_(whole.view_as(parameter))
        if key is None:
            parameter.data.copy_(whole.view_as(parameter))

    def masters(self) -> dict[nn.Parameter, Tensor]:
        """ZeRO 0 at 16 bits: each parameter's fp32 copy, which DeepSpeed's own accessor does not know."""
        low, high = getattr(self.wrapper, "fp16_groups", None), getattr(self.wrapper, "fp32_groups", None)
        if self.stage or low is None or high is None:
            return {}
        return {p: m for ps, ms in zip(low, high, strict=True) for p, m in zip(ps, ms, strict=True)}
