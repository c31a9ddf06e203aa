"""Adapters: LoRA and prefixes beside a frozen pretrained model, several on one model.

A model carries adapters by name and uses one of them, or none. LoRA is merged into the matrices if a plain model is
wanted; a prefix stays separate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model.config import AdaptationConfig
from gpt2.model.transformer import GPT2, Attention, KVCache

NAME = "default"
"""Name of the adapter that fine-tuning makes."""


class LowRank(nn.Module):
    """A low-rank change, alpha / rank B A: (..., in) to (..., out), zero at first (LoRA, Hu et al. 2021)."""

    def __init__(self, n_in: int, n_out: int, config: AdaptationConfig):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.empty(config.rank, n_in)), nn.Parameter(torch.zeros(n_out, config.rank))
        self.scale, self.dropout = config.alpha / config.rank, config.dropout
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(F.dropout(x, self.dropout, self.training), self.a), self.b * self.scale)

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """Return the change as a matrix, (out, in), fp32."""
        return self.scale * self.b.float() @ self.a.float()


class LoRALinear(nn.Linear):
    """A linear layer with low-rank changes by name."""

    def __init__(self, linear: nn.Linear):
        """Take over the layer's own parameters."""
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.adapters, self.merged = nn.ModuleDict(), False
        self.active: str | None = None
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.active is None or self.merged else y + self.adapters[self.active](x)

    def plain(self) -> nn.Linear:
        """Return the layer without changes."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear


class PrefixKeyValues(nn.Module):
    """A prefix's keys and values, (P, heads, C / heads), which every token of a layer sees before its text."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys, self.values = nn.Parameter(keys), nn.Parameter(values)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


def adapt(model: GPT2, config: AdaptationConfig, name: str = NAME) -> None:
    """Freeze the parameters that `config` does not train, then add a new adapter and use it.

    `full` freezes nothing and adds no adapter. Draws from PyTorch's global generator. `ValueError` if the adapter does
    not fit the model or its name is taken.
    """
    if config.kind == "full":
        if config.model_dropout is not None:
            model.drop(config.model_dropout)
        return
    model.requires_grad_(False)
    if config.kind != "head":
        add(model, config, name)


def add(model: GPT2, config: AdaptationConfig, name: str = NAME) -> None:
    """Add an adapter to the model and use it: LoRA that changes nothing yet, or a prefix of random words."""
    if not name.isidentifier():
        raise ValueError(f"an adapter can't be called {name!r}; give a name of letters, digits and _")
    if name in model.adaptations:
        raise ValueError(f"the model has an adapter {name!r} already; give the new one another name")
    if config.kind == "lora":
        for path in targets(model, config):
            linear = model.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            if config.rank > (least := min(linear.in_features, linear.out_features)):
                raise ValueError(f"rank={config.rank} is more than {path} has, {least}; lower the rank")
        for path in targets(model, config):
            linear = model.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            if not isinstance(linear, LoRALinear):
                linear = LoRALinear(linear)
                model.set_submodule(path, linear)
            change = LowRank(linear.in_features, linear.out_features, config).to(linear.weight)
            linear.adapters[name] = change.train(linear.training)  # an evaluated model stays without dropout
    elif config.kind == "prefix":
        for attention, (keys, values) in zip(
            attentions(model), random_word_prefix(model, config.prefix_length), strict=True
        ):
            attention.adapters[name] = PrefixKeyValues(keys, values)
    else:
        raise ValueError(f"kind={config.kind} has no adapter; set kind: lora or prefix")
    model.adaptations[name] = config
    use(model, name)


def targets(model: GPT2, config: AdaptationConfig) -> list[str]:
    """Return the paths of the matrices that LoRA changes."""
    return [f"blocks.{i}.{target}" for i in range(len(model.blocks)) for target in config.targets]


def attentions(model: GPT2) -> list[Attention]:
    return [m for m in model.modules() if isinstance(m, Attention)]


@torch.no_grad()
def random_word_prefix(model: GPT2, length: int) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's keys and values, (length, heads, C / heads), of random words.

    They are a better start than random numbers (Li and Liang 2021, section 7.4).
    """
    use(model, None)
    was_training = model.training
    model.eval()
    room = min(length, model.config.n_positions)
    rows = -(-length // room)
    ids = torch.randint(model.config.vocab_size, (rows, room)).to(model.wte.weight.device)
    caches = [KVCache(rows, room, model.config, model.wte.weight) for _ in model.blocks]
    for cache in caches:
        cache.positions = torch.arange(room, device=ids.device).expand(rows, -1)
    model.hidden(ids, caches)
    model.train(was_training)
    plain = torch.contiguous_format  # optimizer moments copy this layout, and checkpoints read them as vectors
    return [
        tuple(t.transpose(1, 2).flatten(0, 1)[:length].clone(memory_format=plain) for t in (c.keys, c.values))  # type: ignore[misc]
        for c in caches
    ]


def carriers(model: GPT2) -> Iterator[tuple[str, LoRALinear | Attention]]:
    """Yield (path, module) of all modules that may have adapters."""
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear | Attention):
            yield path, module


def use(model: GPT2, name: str | None) -> None:
    """Use the adapter of that name, or none; `ValueError` lists the existing ones."""
    if name is not None and name not in model.adaptations:
        raise ValueError(f"the model has no adapter {name!r}; it has {', '.join(model.adaptations) or 'none'}")
    unmerge(model)
    for _, module in carriers(model):
        module.active = name if name is not None and name in module.adapters else None


def merge(model: GPT2) -> None:
    """Add the active LoRA to the matrices: the same results at no extra cost, until `unmerge`."""
    _add_to_matrices(model, 1)


def unmerge(model: GPT2) -> None:
    """Subtract the active LoRA from the matrices."""
    _add_to_matrices(model, -1)


@torch.no_grad()
def _add_to_matrices(model: GPT2, sign: int) -> None:
    for _, module in carriers(model):
        if isinstance(module, LoRALinear) and module.active is not None and module.merged is (sign < 0):
            change = module.adapters[module.active]
            assert isinstance(change, LowRank)
            module.weight.copy_(module.weight.float() + sign * change.matrix())
            module.merged = sign > 0


def plain(model: GPT2) -> GPT2:
    """Return a copy with the active LoRA merged and without adapters; the model itself if it has none."""
    if not model.adaptations:
        return model
    model = copy.deepcopy(model)
    merge(model)
    for path, module in list(carriers(model)):
        if isinstance(module, LoRALinear):
            model.set_submodule(path, module.plain())
        else:
            module.adapters, module.active = nn.ModuleDict(), None
    model.adaptations = {}
    return model


def tensors(model: GPT2, name: str = NAME) -> dict[str, Tensor]:
    """Return an adapter's parameters by name, fp32 on the CPU."""
    return {
        f"{path}.{key}": value.detach().float().cpu().contiguous()
        for path, module in carriers(model)
        if name in module.adapters
        for key, value in module.adapters[name].state_dict().items()
    }


def remove(model: GPT2, name: str) -> None:
    """Remove an adapter from the model."""
    use(model, None)
    for path, module in list(carriers(model)):
        if name in module.adapters:
            del module.adapters[name]
        if isinstance(module, LoRALinear) and not len(module.adapters):
            model.set_submodule(path, module.plain())
    del model.adaptations[name]


def trained_parameters(module: nn.Module) -> int:
    """Return the number of parameters that training changes."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
