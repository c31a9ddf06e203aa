"""Layers of PyTorch whose kernels add gradients up in bf16 on a CPU, with gradients as exact as everywhere else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model.hardware import on_cpu


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
