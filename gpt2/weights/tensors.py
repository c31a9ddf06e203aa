"""Reads weights from files of unknown origin: tensors only, and nothing in the files is executed.

Safetensors hold numbers only. A `.bin` is a pickle, which PyTorch's restricted unpickler reads: it builds tensors and
plain containers and refuses everything else. File names in an index must be names of files beside it. `auto_map` and
other code that a configuration points to is never read.
"""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpt2.model.hardware import CPU, on_cpu
from gpt2.store.artifact import IS_POINTER, LFS
from gpt2.store.model_files import inside, read_json

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files that may hold weights, in the order of search: each, then the shards that its `.index.json` lists."""
SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}", re.ASCII)
"""Pattern of a plain file name."""


class _Uninitialised(TorchFunctionMode):
    """Leaves out `torch.nn.init`, which on the device `meta` would import PyTorch's compiler, for a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Build modules without memory and values: the parameters have shapes alone."""
    with torch.device("meta"), _Uninitialised():
        yield


def weights(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """Return (the file, or the index of several; all tensors by name).

    `ValueError` if there are no weights, or if they can't be trusted.
    """
    first, *_ = places(directory)
    return first, shards(first) if first.suffix == ".json" else read(first)


def places(directory: Path) -> list[Path]:
    """Return the files that `weights` reads: one file, or an index and its shards."""
    for name in WEIGHTS:
        path, index = directory / name, directory / f"{name}.index.json"
        if path.exists() or path.is_symlink():
            return [path]
        if index.exists():
            return [index, *(directory / name for name in sorted(set(listed(index).values())))]
    raise ValueError(f"{directory / WEIGHTS[0]} can't be read as safetensors: it is missing, and so is {WEIGHTS[1]}")


def listed(index: Path) -> dict[str, str]:
    """Return {tensor: name of its file beside the index}; `ValueError` if the index is not valid."""
    values = read_json(index)
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} is not an index of weights: weight_map must map tensors to file names")
    for name in weight_map.values():
        if not SHARD.fullmatch(name):
            raise ValueError(f"{index} points to {name!r}, which is no file beside it; don't use this model")
    return weight_map


def shards(index: Path) -> dict[str, Tensor]:
    """Return all tensors of an index's files; `ValueError` if a file does not hold exactly its listed tensors."""
    where, found = listed(index), dict[str, Tensor]()
    for name in sorted(set(where.values())):
        here = read(index.parent / name)
        wanted = {tensor for tensor, place in where.items() if place == name}
        if wanted != here.keys():
            odd = min(wanted ^ here.keys())
            raise ValueError(f"{index} and {name} disagree about the tensor {odd!r}; restore the model's own files")
        found |= here
    return found


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one .safetensors or .bin file, on the CPU; `ValueError` if they are not plain."""
    inside(path)
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        if stream.read(len(LFS)) == LFS:
            raise ValueError(f"{path} {IS_POINTER}")
    found = unpickled(path) if path.suffix == ".bin" else mapped(path)
    for name, tensor in found.items():
        if tensor.is_nested or tensor.layout != torch.strided or not on_cpu(tensor):
            kind = "nested" if tensor.is_nested else f"{str(tensor.layout).removeprefix('torch.')} {tensor.device.type}"
            raise ValueError(f"{path}: {name!r} is a {kind} tensor; save the model's weights as plain ones of the CPU")
    return found


def mapped(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} can't be read as safetensors: {error}") from None


def unpickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickle, read by PyTorch's restricted unpickler."""
    try:
        found = torch.load(path, map_location=CPU, weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds more than tensors, or is damaged: it was not loaded, as a pickle can run any code; ask for "
            f"model.safetensors"
        ) from None
    except Exception as error:  # a damaged pickle raises whatever comes up
        raise ValueError(f"{path} can't be read as PyTorch weights: {error!r:.200}") from None
    if not isinstance(found, Mapping) or not all(
        isinstance(n, str) and isinstance(t, Tensor) for n, t in found.items()
    ):
        raise ValueError(f"{path} holds no tensors by name; is it a training checkpoint? give the model's weights")
    return dict(found)


def check(
    path: Path,
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    cause: str = "is it, or config.json, another model's?",
) -> None:
    """Raise `ValueError` if tensors are missing, unexpected, of another shape, not floating point or not finite.

    For the first three the message ends with the likely `cause`.
    """
    for what, names in (("has no", expected.keys() - found), ("has the unexpected", found.keys() - expected.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{path} {what} tensor {min(names)!r}{more}; {cause}")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {name!r} is {tuple(found[name].shape)}, the model needs {tuple(tensor.shape)}; {cause}"
            )
        if not found[name].is_floating_point():
            raise ValueError(
                f"{path}: {name!r} holds {found[name].dtype}, not floating point numbers; is it quantized? give the "
                f"model as it was before"
            )
    finite(path, {name: found[name] for name in expected})


def finite(path: Path, found: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` for a tensor of a file that has NaN or infinite numbers."""
    for name, tensor in found.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor.float())  # both are NaN if any number is; the fastest check
            if not (low.isfinite() and high.isfinite()):
                raise ValueError(
                    f"{path}: {name!r} holds numbers from {low:g} to {high:g}, which are not finite; did its training "
                    f"diverge, or is the file damaged?"
                )


def fill(module: nn.Module, path: Path) -> None:
    """Load the tensors of a file into a module; `ValueError` if they are not the module's."""
    found = read(path)
    check(path, found, module.state_dict(), "is it another model's, or of other labels?")
    module.load_state_dict(found)
