"""Layers whose gradients are exact in bf16 on a CPU too, and the next-token loss, which holds few logits at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model.hardware import CPU, on_cpu


class ExactLayerNorm(torch.autograd.Function):
    """Layer normalisation of bf16 on a CPU, whose gradients of weight and bias are sums of any number of rows.

    PyTorch's kernel adds rows up in bf16: 4,096 ones are 256 (2.13). Its forward pass and its gradient of the input are
    used as they are.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
        y, mean, scale = torch.native_layer_norm(x, weight.shape, weight, bias, epsilon)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        ctx.epsilon = epsilon
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, weight, bias, mean, scale = ctx.saved_tensors
        shape, (need_x, need_weight, need_bias, _) = weight.shape, ctx.needs_input_grad
        dx = d_weight = d_bias = None
        if need_x:
            only_x = [True, False, False]
            dx = torch.ops.aten.native_layer_norm_backward(dy, x, shape, mean, scale, weight, bias, only_x)[0]
        if need_weight:
            normal = F.layer_norm(x, shape, eps=ctx.epsilon)
            d_weight = normal.mul_(dy).flatten(0, -2).sum(0)
        if need_bias:
            d_bias = dy.flatten(0, -2).sum(0)
        return dx, d_weight, d_bias, None


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the last dimension, with exact gradients."""

    def forward(self, x: Tensor) -> Tensor:
        if on_cpu(x) and x.dtype == torch.bfloat16:
            return ExactLayerNorm.apply(x, self.weight, self.bias, self.eps)
        return super().forward(x)


def take(table: Tensor, ids: Tensor) -> Tensor:
    """Return the rows (..., C) of a (V, C) table at (...) ids, with an exact gradient of the table.

    In bf16 on a CPU an embedding's gradient is added up in bf16, `index_select`'s is not (2.13).
    """
    if on_cpu(table) and table.dtype == torch.bfloat16:
        return table.index_select(0, ids.flatten()).unflatten(0, ids.shape)
    return F.embedding(ids, table)


class Embedding(nn.Embedding):
    """`nn.Embedding` with exact gradients."""

    def forward(self, ids: Tensor) -> Tensor:
        return take(self.weight, ids)


IGNORED = -100
"""Target of a position without a loss."""
# Bytes of logits that the loss holds at a time: they fit a CPU's cache, or keep a GPU busy.
# A wide model needs more (`loss_rows`): at the 124M shape in bf16 it is 154 MB on a CPU.
LOSS_SLICE_CPU, LOSS_SLICE_GPU = 2**23, 2**28
DW_TILE_CPU = 4096  # rows of dW (tokens of the vocabulary) per product: a single product takes 1.3 times as long


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy (nats, fp32, scalar) of hidden states (..., C) with a head (V, C).

    Targets of -100 are ignored. `ValueError` for other targets beyond the vocabulary, on a CPU.
    """
    kept = targets != IGNORED
    targets = targets[kept]
    try:
        return SlicedCrossEntropy.apply(hidden[kept], weight, targets, torch.is_grad_enabled())
    except (RuntimeError, IndexError):
        if on_cpu(targets) and (targets.min() < 0 or targets.max() >= len(weight)):
            raise ValueError(
                f"targets from {int(targets.min())} to {int(targets.max())} are not all in the model's range, 0 to "
                f"{len(weight) - 1}, or {IGNORED} for none; use the model's own tokenizer"
            ) from None
        raise


def loss_rows(vocabulary: int, width: int, dtype: torch.dtype, device: str) -> int:
    """Return the number of tokens whose logits the loss holds at a time."""
    room = LOSS_SLICE_CPU if device == CPU else LOSS_SLICE_GPU
    # At least twice the width: otherwise reading and writing dW for each slice takes longer than its products.
    return max(2 * width, room // (vocabulary * dtype.itemsize))


class SlicedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of (N, C) hidden states with a (V, C) head, holding only a slice of the logits at a time.

    Gradients are computed in the forward pass, slice by slice, so logits are computed once (as in Liger Kernel, Hsu et
    al. 2024). Matrix products have the parameters' or autocast's precision. Probabilities are computed in fp32 and
    rounded to it once. Losses, sums and dW are in fp32.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, need: bool) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        rows = loss_rows(len(weight), weight.shape[1], dtype, device)
        tile = DW_TILE_CPU if device == CPU else len(weight)
        low_weight = weight.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if need else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if need else None
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden), rows):
                part = hidden[start : start + rows].to(dtype)
                goal = targets[start : start + rows]
                logits = F.linear(part, low_weight)
                if d_hidden is None or d_weight is None:
                    total += F.cross_entropy(logits.float(), goal, reduction="sum")
                    continue
                probabilities = logits.softmax(dim=-1)
                # A logsumexp without a second exp; rounding of the largest probability, up to 2^-9, adds no bias.
                log_z = logits.amax(-1).float() - probabilities.amax(-1).float().log()
                losses = log_z - logits.gather(1, goal[:, None])[:, 0].float()
                total += losses.sum()
                d_logits = probabilities
                d_logits[torch.arange(len(goal), device=hidden.device), goal] = ((-losses).exp() - 1).to(dtype)
                d_hidden[start : start + rows] = d_logits @ low_weight
                for first in range(0, len(weight), tile):
                    d_weight[first : first + tile] += d_logits[:, first : first + tile].T @ part
        ctx.dtype = weight.dtype
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx, scale: Tensor):
        # The sum's gradients fit fp16. The mean's, divided before the loss scale is applied, would not.
        d_hidden, d_weight = ctx.saved_tensors
        return (d_hidden.float() * scale).to(d_hidden.dtype), (d_weight * scale).to(ctx.dtype), None, None
