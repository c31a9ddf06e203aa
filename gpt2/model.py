"""GPT-2 (Radford et al. 2019), whole: embeddings, attention, MLP, block, head, loss.

Shapes: B batch, T time, C width, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2.config import ModelConfig

IGNORED = -100
# Logits that the loss holds at a time: on a CPU as many as its cache has room for, on a GPU as many as keep it busy.
LOSS_SLICE_CPU, LOSS_SLICE_GPU = 2**21, 2**26
LOSS_ROWS = 256  # but no fewer rows, whatever the vocabulary: thinner matrix products are slow
SHORT = 512  # tokens up to which a CPU attends faster by plain matrix products


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cache: KeyValues | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in self.qkv(x).split(C, dim=-1)
        )  # (B, heads, T, C / heads)
        y = (
            causal_attention(q, k, v, self.dropout if self.training else 0.0)
            if cache is None
            else cache.attend(q, k, v)
        )
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.proj(y), self.dropout, self.training)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """(B, heads, T, d) queries, keys and values to (B, heads, T, d); each position sees itself and what is before.

    PyTorch's fused kernel, except for short sequences in bf16 on a CPU, where its backward pass takes about twice as
    long as the same steps one by one (2.13, AVX-512).
    """
    T, d = q.shape[-2:]
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or T > SHORT:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)
    weights = ((q * d**-0.5) @ k.transpose(-2, -1) + future).softmax(dim=-1)
    return F.dropout(weights, dropout) @ v


class MLP(nn.Module):
    """Two matrices around GELU in its tanh form."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dropout = config.dropout
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.proj(F.gelu(self.fc(x), approximate="tanh")), self.dropout, self.training)


class Block(nn.Module):
    """Each branch reads the normalised residual stream and adds to it: x + f(norm(x))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KeyValues | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class KeyValues:
    """One layer's keys and values, (B, heads, room, C / heads), filled from the left as tokens come."""

    def __init__(self, batch: int, room: int, config: ModelConfig, like: Tensor):
        shape = (batch, config.n_head, room, config.n_embd // config.n_head)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.positions = torch.zeros(batch, 1, dtype=torch.long, device=like.device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store (B, heads, T, d) keys and values at `positions` (B, T); attend to what is at or before each."""
        index = self.positions[:, None, :, None].expand_as(k)
        self.keys.scatter_(2, index, k)
        self.values.scatter_(2, index, v)
        end = int(self.positions.max()) + 1
        seen = torch.arange(end, device=q.device) <= self.positions[:, None, :, None]  # (B, 1, T, end)
        return F.scaled_dot_product_attention(q, self.keys[:, :, :end], self.values[:, :, :end], attn_mask=seen)


class GPT2(nn.Module):
    """The language model. Batches are padded on the right: causal attention never looks there."""

    def __init__(self, config: ModelConfig, seed: int | None = None):
        """Weights as published; drawn from `seed`, or from PyTorch's global generator without one."""
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # in training, recompute each block in the backward pass
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self._initialise(None if seed is None else torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator | None) -> None:
        """N(0, initializer_range); what adds to the residual stream gets 1/sqrt(2 n_layer) of it (section 2.3)."""
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=std / math.sqrt(2 * self.config.n_layer), generator=generator)
            elif parameter.ndim == 2:  # the gains of normalisations stay 1
                nn.init.normal_(parameter, std=std, generator=generator)

    def hidden(self, ids: Tensor, caches: list[KeyValues] | None = None) -> Tensor:
        """(B, T) ids to (B, T, C), after the final normalisation. `ValueError` where T exceeds the positions."""
        return self.read(self.wte(ids), caches)

    def read(self, x: Tensor, caches: list[KeyValues] | None = None) -> Tensor:
        """(B, T, C) embeddings, without positions, to (B, T, C), after the final normalisation."""
        T = x.shape[1]
        if self.config.n_positions < T:
            raise ValueError(f"{T} tokens are more than the model's {self.config.n_positions} positions; shorten them")
        positions = caches[0].positions if caches else torch.arange(T, device=x.device)
        x = F.dropout(x + self.wpe(positions), self.config.dropout, self.training)
        for layer, block in enumerate(self.blocks):
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, caches[layer] if caches else None)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) to (..., V): the head is the token embedding, transposed."""
        return F.linear(hidden, self.wte.weight)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy (nats, fp32, scalar) of (B, T) targets; -100 is left out. 0 where nothing is left."""
        return cross_entropy(self.hidden(ids), self.wte.weight, targets) / (targets != IGNORED).sum().clamp_min(1)

    @torch.no_grad()
    def loss_sum(self, ids: Tensor, targets: Tensor) -> tuple[float, int]:
        """Sum of cross-entropies (nats) of (B, T) targets, and how many there are; -100 is left out."""
        return float(cross_entropy(self.hidden(ids), self.wte.weight, targets)), int((targets != IGNORED).sum())


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy (nats, fp32, scalar) of (..., C) hidden states against a (V, C) head; -100 is left out."""
    kept = targets != IGNORED
    return SlicedCrossEntropy.apply(hidden[kept], weight, targets[kept], torch.is_grad_enabled())


class SlicedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of (N, C) hidden states against a (V, C) head, never holding more than a slice of logits.

    The gradients are made in the forward pass, slice by slice, so logits are computed once (as in Liger Kernel, Hsu et
    al. 2024). Matrix products have the parameters' or autocast's precision; softmax, sums and dW are in fp32.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, need: bool) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        rows = max(LOSS_ROWS, (LOSS_SLICE_CPU if device == "cpu" else LOSS_SLICE_GPU) // len(weight))
        low_weight = weight.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if need else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if need else None
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden), rows):
                part = hidden[start : start + rows].to(dtype)
                goal = targets[start : start + rows, None]
                logits = F.linear(part, low_weight).float()
                probabilities = logits.softmax(dim=-1)
                log_z = logits.amax(-1) - probabilities.amax(-1).log()  # a logsumexp without another pass of exp
                total += (log_z - logits.gather(1, goal)[:, 0]).sum()
                if d_hidden is not None and d_weight is not None:
                    d_logits = probabilities.scatter_(1, goal, probabilities.gather(1, goal) - 1).to(dtype)
                    d_hidden[start : start + rows] = d_logits @ low_weight
                    d_weight += d_logits.T @ part
        ctx.dtype = weight.dtype
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx, scale: Tensor):
        # The sum's gradients fit fp16 as they are; the mean's, scaled before the loss scale comes in, would not.
        d_hidden, d_weight = ctx.saved_tensors
        return (d_hidden.float() * scale).to(d_hidden.dtype), (d_weight * scale).to(ctx.dtype), None, None
