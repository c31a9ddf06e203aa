"""GPT-2 (Radford et al. 2019), whole: embeddings, attention, MLP, block, head, loss. Shapes: B batch, T time, C width."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2.config import ModelConfig

IGNORED = -100
LOSS_SLICE = 2**22  # logits held at a time by the loss: 16 MB in fp32


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
        if cache is not None:
            y = cache.attend(q, k, v)
        else:
            dropout = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.proj(y), self.dropout, self.training)


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

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, (Attention, MLP)):  # visited after its parts
            nn.init.normal_(module.proj.weight, std=std / math.sqrt(2 * self.config.n_layer))

    def hidden(self, ids: Tensor, caches: list[KeyValues] | None = None) -> Tensor:
        """(B, T) ids to (B, T, C), after the final normalisation. `ValueError` where T exceeds the positions."""
        T = ids.shape[1]
        if self.config.n_positions < T:
            raise ValueError(
                f"{T} tokens do not fit the model's {self.config.n_positions} positions; shorten the input"
            )
        positions = caches[0].positions if caches else torch.arange(T, device=ids.device)
        x = F.dropout(self.wte(ids) + self.wpe(positions), self.config.dropout, self.training)
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
        """Mean cross-entropy (nats, fp32, scalar) of (B, T) targets; -100 is left out."""
        return SlicedCrossEntropy.apply(
            self.hidden(ids).flatten(0, 1), self.wte.weight, targets.flatten(), torch.is_grad_enabled()
        )

    @torch.no_grad()
    def loss_sum(self, ids: Tensor, targets: Tensor) -> tuple[float, int]:
        """Sum of cross-entropies (nats) and number of targets."""
        count = int((targets != IGNORED).sum())
        return (float(self.loss(ids, targets)) * count if count else 0.0), count


class SlicedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of (N, C) hidden states against a (V, C) head, never holding more than a slice of the logits.

    The backward pass is done in the forward pass, slice by slice (as in Liger Kernel, Hsu et al. 2024): logits are
    computed once, and their gradient overwrites them.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, need: bool) -> Tensor:
        rows = max(1, LOSS_SLICE // weight.shape[0])
        count = max(1, int((targets != IGNORED).sum()))
        d_hidden = torch.empty_like(hidden) if need else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), rows):
            part, goal = hidden[start : start + rows], targets[start : start + rows]
            kept = goal != IGNORED
            logits = F.linear(part, weight)
            log_z = torch.logsumexp(logits.float(), dim=-1)
            picked = logits.gather(1, goal.clamp_min(0)[:, None])[:, 0].float()
            total += ((log_z - picked) * kept).sum()
            if d_hidden is not None and d_weight is not None:
                probabilities = torch.exp(logits.float() - log_z[:, None])
                probabilities[torch.arange(len(goal), device=goal.device), goal.clamp_min(0)] -= 1
                probabilities *= (kept / count)[:, None]
                gradient = probabilities.to(hidden.dtype)
                d_hidden[start : start + rows] = gradient @ weight
                d_weight += gradient.T @ part
        ctx.save_for_backward(d_hidden, d_weight.to(weight.dtype) if d_weight is not None else None)
        return total / count

    @staticmethod
    def backward(ctx, scale: Tensor):
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * scale.to(d_hidden.dtype), d_weight * scale.to(d_weight.dtype), None, None
