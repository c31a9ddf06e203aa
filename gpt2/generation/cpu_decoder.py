"""Fast single-token decoding with GPT-2 on a CPU.

A step reads every weight for only a few rows. So its cost is that of reading them, and of Python and PyTorch between
the products. oneDNN's own layout of the weights is read up to twice as fast; the additions and the GELU are fused into
the products. The results equal those of `GPT2.hidden` and `GPT2.logits` up to rounding (tested).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.model.hardware import on_cpu
from gpt2.model.transformer import GPT2, KVCache

WORTHWHILE = 8
"""Number of steps from which converting the weights to another layout pays off."""
LARGEST = 2**29
"""Largest number of parameters of which the weights are copied: 2 GiB in fp32."""


def decoder(model: GPT2, rows: int, steps: int) -> Decoder | None:
    """Return a decoder that takes `steps` steps of `rows` rows faster than the model, or None.

    There is none on a GPU, in a precision other than fp32, with adapters, beyond GPT-2's architecture, or for very
    large models. Few steps do not pay for the copy.
    """
    weight = model.wte.weight
    plain = not (model.config.beyond_gpt2() or model.adaptations)
    usable = on_cpu(weight) and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    usable = usable and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")  # internal to `torch.compile`, may vanish
    pays = steps >= WORTHWHILE and model.config.n_parameters <= LARGEST
    return Decoder(model, rows) if plain and usable and pays else None


class Layer(NamedTuple):
    """The parts of a block."""

    ln_1: Norm
    qkv: Matrix
    out: Matrix
    ln_2: Norm
    fc: Matrix
    proj: Matrix


class Norm:
    """A layer normalisation."""

    def __init__(self, norm: Any):
        self.values = (norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, *self.values)


class Matrix:
    """A linear layer whose weight (out, in) is laid out for oneDNN and `rows` rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int):
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows), bias

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU of the linear layer, in its tanh form."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "tanh")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the linear layer plus `other`."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")


class Decoder:
    """Takes steps with the caches that the model filled. It holds a copy of the weights, made at its creation."""

    @torch.no_grad()
    def __init__(self, model: GPT2, rows: int):
        def packed(linear: Any) -> Matrix:
            return Matrix(linear.weight, linear.bias, rows)

        assert model.wpe is not None  # `decoder` lets only GPT-2's architecture through
        self.n_head, self.tokens, self.places = model.config.n_head, model.wte.weight, model.wpe.weight
        self.layers = []
        block: Any
        for block in model.blocks:
            attn, mlp = block.attn, block.mlp
            projections = packed(attn.qkv), packed(attn.proj), packed(mlp.fc), packed(mlp.proj)
            self.layers.append(Layer(Norm(block.ln_1), *projections[:2], Norm(block.ln_2), *projections[2:]))
        self.norm, self.head = Norm(model.ln_f), Matrix(model.wte.weight, None, rows)

    def logits(self, ids: Tensor, positions: Tensor, caches: list[KVCache]) -> Tensor:
        """Append (B,) ids at (B,) positions to the caches and return the logits (B, V) of the next tokens."""
        x = F.embedding(ids, self.tokens) + F.embedding(positions, self.places)
        for (ln_1, qkv, out, ln_2, fc, proj), cache in zip(self.layers, caches, strict=True):
            q, k, v = qkv(ln_1(x)).unflatten(1, (3, self.n_head, 1, -1)).unbind(1)
            x = out.plus(cache.step(q, k, v).flatten(1), x)
            x = proj.plus(fc.gelu(ln_2(x)), x)
        return self.head(self.norm(x))
