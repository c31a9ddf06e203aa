"""The whole of GPT-2 (Radford et al. 2019), with later variants as options: embeddings, attention, MLP, block, head,
loss.

Shapes: B batch, T time, C width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2.model.config import AdaptationConfig, ModelConfig
from gpt2.model.hardware import on_cpu
from gpt2.model.layers import IGNORED, Embedding, LayerNorm, cross_entropy

ROTARY_BASE = 10_000.0
SHORT = 512  # tokens up to which plain matrix products are the faster attention on a CPU
GELU_SLOPE, GELU_CUBE = 2 * math.sqrt(2 / math.pi), 0.044715  # x sigmoid(slope (x + cube x^3))
HALVED = 128  # tokens from which it pays to do them in two halves


class Attention(nn.Module):
    """Causal multi-head self-attention. Later variants of it are switches of `ModelShape`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_head, self.dropout, self.qk_norm = config.n_head, config.dropout, config.qk_norm
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, config.bias)
        self.value_mix = nn.Parameter(torch.full((1,), 0.5)) if config.value_residual else None
        self.adapters = nn.ModuleDict()
        self.active: str | None = None
        """The name of the prefix in use, one of `adapters` (`gpt2.model.adapters`), or None."""

    def forward(
        self, x: Tensor, attend: Attend, rotation: tuple[Tensor, Tensor] | None, first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return (..., C) of the same shape as `x`, and the first layer's values, (..., heads, C / heads), for later
        layers."""
        q, k, v = (t.unflatten(-1, (self.n_head, -1)) for t in self.qkv(x).chunk(3, dim=-1))
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        first = v if first is None else first
        if self.value_mix is not None:
            v = torch.lerp(v, first, self.value_mix.to(v.dtype))
        prefix = None if self.active is None else self.adapters[self.active]()
        y = attend(q, k, v, self.dropout if self.training else 0.0, prefix)
        return F.dropout(self.proj(y.flatten(-2)), self.dropout, self.training), first


Prefix = tuple[Tensor, Tensor]
"""Keys and values (P, heads, C / heads) that every token of every text sees."""

Attend = Callable[[Tensor, Tensor, Tensor, float, Prefix | None], Tensor]
"""Maps queries, keys and values (..., heads, C / heads), a dropout probability and a prefix to (..., heads, C / heads).
"""


def attend_rows(q: Tensor, k: Tensor, v: Tensor, dropout: float, prefix: Prefix | None = None) -> Tensor:
    """Return causal attention of (B, T, heads, d) in the same shape, each row by itself."""
    if prefix is not None:  # prepended as tokens whose own results are dropped
        before = [t.to(q.dtype).expand(len(q), -1, -1, -1) for t in prefix]
        q, k, v = (
            torch.cat([b, t], dim=1) for b, t in zip((torch.zeros_like(before[0]), *before), (q, k, v), strict=True)
        )
    y = causal_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), dropout).transpose(1, 2)
    return y if prefix is None else y[:, len(prefix[0]) :]


class Packed:
    """Texts of unequal length end to end, without padding: (N, ...) tokens of `lengths` (B,), which sum to N.

    Only attention needs a padded copy, as it reads each text alone; everything else is computed on the N tokens. If
    texts are short beside the width, attention is a small part of the work (Zeng et al. 2022, ByteTransformer).
    """

    def __init__(self, lengths: Tensor):
        if not (lengths > 0).all():
            raise ValueError(f"lengths={lengths.tolist()}, but a text needs one token or more; leave out empty texts")
        self.lengths, self.rows, self.longest = lengths, len(lengths), int(lengths.max())
        starts = lengths.cumsum(0) - lengths
        text = torch.repeat_interleave(torch.arange(self.rows, device=lengths.device), lengths)
        self.positions = torch.arange(len(text), device=lengths.device) - starts[text]
        """(N,): position of each token in its text."""
        self.last = starts + lengths - 1
        """(B,): index of each text's last token."""
        self.text = text
        """(N,): index of each token's text."""
        self.slots = text * self.longest + self.positions

    def pad(self, packed: Tensor) -> Tensor:
        """Return (N, ...) as (B, T, ...), with zeros after each text."""
        padded = packed.new_zeros(self.rows * self.longest, *packed.shape[1:])
        return padded.index_copy(0, self.slots, packed).unflatten(0, (self.rows, self.longest))

    def unpad(self, padded: Tensor) -> Tensor:
        """Return (B, T, ...) as (N, ...), without padding."""
        return padded.flatten(0, 1).index_select(0, self.slots)

    def means(self, packed: Tensor) -> Tensor:
        """Return the mean over each text, (B, C), of (N, C)."""
        sums = packed.new_zeros(self.rows, packed.shape[1]).index_add(0, self.text, packed)
        return sums / self.lengths[:, None].to(packed.dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, prefix: Prefix | None = None) -> Tensor:
        """Return causal attention, (N, heads, d); no token sees another text's."""
        q, k, v = self.pad(torch.cat([q, k, v], dim=1)).chunk(3, dim=2)  # one copy is cheaper than three
        return self.unpad(attend_rows(q, k, v, dropout, prefix))


def rotations(positions: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, (..., 1, width / 2), of the rotary angles at (...) positions (Su et al. 2021)."""
    frequencies = ROTARY_BASE ** -torch.arange(0, 1, 2 / width, device=positions.device)
    angles = (positions[..., None].float() * frequencies)[..., None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (..., heads, d): entry i with entry i + d / 2 (as in GPT-NeoX)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Return causal attention of (B, heads, T, d) in the same shape; each position sees itself and earlier ones.

    PyTorch's fused kernel is used, except for short sequences in bf16 on a CPU. There its backward pass takes about
    twice as long as the separate steps (2.13, AVX-512). The first half of the queries then skips the last half of the
    keys, which saves a quarter of the work. More pieces would cost more in small products than they save.
    """
    T, d = q.shape[-2:]
    if not on_cpu(q) or q.dtype != torch.bfloat16 or T > SHORT:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)
    q = q * d**-0.5
    halves = [(0, T)] if T < HALVED else [(0, T // 2), (T // 2, T)]
    results = []
    for start, end in halves:
        scores = q[..., start:end, :] @ k[..., :end, :].transpose(-2, -1) + future[start:end, :end]
        results.append(F.dropout(scores.softmax(dim=-1), dropout) @ v[..., :end, :])
    return torch.cat(results, dim=-2)


class MLP(nn.Module):
    """Two matrices around a non-linearity; with SwiGLU the first is two."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dropout, self.activation = config.dropout, ACTIVATIONS[config.activation]
        self.fc = nn.Linear(config.n_embd, config.n_inner * (2 if config.activation == "swiglu" else 1), config.bias)
        self.proj = nn.Linear(config.n_inner, config.n_embd, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.proj(self.activation(self.fc(x))), self.dropout, self.training)


class GeluTanh(torch.autograd.Function):
    """GELU's tanh approximation (Hendrycks and Gimpel 2016), computed as x times a sigmoid, which it equals.

    In bf16 on a CPU PyTorch's kernel takes 1.7 times as long, for its tanh (2.13). Its backward pass is used as it is.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        slope = x.new_tensor(GELU_SLOPE)
        return torch.addcmul(slope, x, x, value=GELU_SLOPE * GELU_CUBE).mul_(x).sigmoid_().mul_(x)

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(dy, x, approximate="tanh")


def gelu_tanh(x: Tensor) -> Tensor:
    """Return GELU in its tanh approximation, in the same shape."""
    if on_cpu(x) and x.dtype == torch.bfloat16:
        return GeluTanh.apply(x)
    return F.gelu(x, approximate="tanh")


def swiglu(x: Tensor) -> Tensor:
    """Return SwiGLU, (..., H), of (..., 2 H) (Shazeer 2020)."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "tanh": torch.tanh,
    "swiglu": swiglu,
}


def norm(config: ModelConfig) -> nn.Module:
    """Return the normalisation layer that the configuration names."""
    if config.norm == "layer":
        return LayerNorm(config.n_embd, config.layer_norm_epsilon, bias=config.bias)
    return nn.RMSNorm(config.n_embd, config.layer_norm_epsilon) if config.norm == "rms" else nn.Identity()


class Block(nn.Module):
    """One Transformer block. Each branch reads the normalised residual stream and adds to it: x + f(norm(x)).

    With `norm_placement: post` it normalises the sum: norm(x + f(x)) (Vaswani et al. 2017). Without `residual` a branch
    replaces the stream.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.pre, self.residual = config.norm_placement == "pre", config.residual
        self.ln_1 = norm(config)
        self.attn = Attention(config)
        self.ln_2 = norm(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, attend: Attend, rotation: tuple[Tensor, Tensor] | None = None, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (..., C) of the same shape as `x`; the rest is as in `Attention`."""
        y, first = self.attn(self.ln_1(x) if self.pre else x, attend, rotation, first)
        x = x + y if self.residual else y
        if not self.pre:
            x = self.ln_1(x)
        y = self.mlp(self.ln_2(x) if self.pre else x)
        x = x + y if self.residual else y
        return (x if self.pre else self.ln_2(x)), first


class AttentionCache(Protocol):
    """One layer's attention to more than the given tokens, such as a cache's."""

    positions: Tensor
    """(B, T): positions of the given tokens."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float, prefix: Prefix | None) -> Tensor: ...


class KVCache:
    """One layer's keys and values, (B, heads, room, C / heads), to which every call appends.

    Texts of unequal length are aligned at their ends: a shorter one begins with empty slots, which nothing sees. So a
    step writes one slice, and needs no mask if all texts are equally long.
    """

    def __init__(self, batch: int, room: int, config: ModelConfig, like: Tensor, seen: Tensor | None = None):
        """`seen` (B, 1, 1, room), shared by the layers, is 0 for a text's slots and -inf for the empty ones before."""
        shape = (batch, config.n_head, room, config.n_embd // config.n_head)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.positions = torch.zeros(batch, 1, dtype=torch.long, device=like.device)
        self.seen, self.length = seen, 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, prefix: Prefix | None = None) -> Tensor:
        """Append keys and values (B, T, heads, d) and return attention in that shape; a query sees itself and earlier
        tokens."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        start, end = self.length, self.length + q.shape[2]
        self.keys[:, :, start:end], self.values[:, :, start:end] = k, v
        self.length = end
        keys, values, mask = self.keys[:, :, :end], self.values[:, :, :end], self.mask(start, end, q)
        if prefix is not None:
            before = [t.to(q.dtype).transpose(0, 1).expand(len(q), -1, -1, -1) for t in prefix]
            keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
            mask = None if mask is None else F.pad(mask, (len(prefix[0]), 0))
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask).transpose(1, 2)

    def step(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append one token of each row and return its attention: `attend` for (B, heads, 1, d), in the same shape."""
        end = self.length = self.length + 1
        self.keys[:, :, end - 1 : end], self.values[:, :, end - 1 : end] = k, v
        seen = None if self.seen is None else self.seen[..., :end]
        return F.scaled_dot_product_attention(q, self.keys[:, :, :end], self.values[:, :, :end], attn_mask=seen)

    def mask(self, start: int, end: int, like: Tensor) -> Tensor | None:
        """Return the mask to add to scores, (B or 1, 1, T, end): -inf if a query must not see a slot; None if all is
        seen."""
        seen = None if self.seen is None else self.seen[..., :end]
        if end - start == 1:
            return seen
        places = torch.arange(end, device=like.device)
        queries = places[start:, None]
        future = torch.zeros(end - start, end, dtype=like.dtype, device=like.device)
        future.masked_fill_(places > queries, -math.inf)
        # Empty slots see themselves: a softmax over nothing would be NaN.
        return future if seen is None else (future + seen).masked_fill(places == queries, 0)


class GPT2(nn.Module):
    """The language model. Batches are packed, or padded on the right, where causal attention never looks."""

    def __init__(self, config: ModelConfig, seed: int | None = None):
        """Initialise the weights as published, from `seed`, or else from PyTorch's global generator."""
        super().__init__()
        self.config = config
        self.adaptations: dict[str, AdaptationConfig] = {}
        """The adapters that the model carries, by name (`gpt2.model.adapters`)."""
        self.activation_checkpointing = False  # in training, recompute each block in the backward pass
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = norm(config) if config.norm_placement == "pre" else nn.Identity()
        self.head = None if config.tied_head else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self._initialise(None if seed is None else torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator | None) -> None:
        """Draw from N(0, initializer_range), divided by sqrt(2 n_layer) for residual projections (section 2.3)."""
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or (self.config.zero_init and name.endswith(("proj.weight", "head.weight"))):
                nn.init.zeros_(parameter)
            elif name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=std / math.sqrt(2 * self.config.n_layer), generator=generator)
            elif parameter.ndim == 2:  # the gains of normalisations stay 1
                nn.init.normal_(parameter, std=std, generator=generator)

    def drop(self, probability: float) -> None:
        """Use another dropout probability in training from now on."""
        self.config = self.config.model_copy(update={"dropout": probability})
        for module in self.modules():
            if isinstance(module, Attention | MLP):
                module.dropout = probability

    def hidden(
        self, ids: Tensor, caches: Sequence[AttentionCache] | None = None, packed: Packed | None = None
    ) -> Tensor:
        """Return the final hidden states, (..., C), of (B, T) ids or (N,) packed ones, after the last normalisation.

        `ValueError` if a text is longer than the positions or, on a CPU, an id is beyond the vocabulary.
        """
        try:
            x = self.wte(ids)
        except IndexError:  # only a CPU raises it; a GPU's assertion says less
            raise ValueError(
                f"ids from {int(ids.min())} to {int(ids.max())} are not all in the model's range, 0 to "
                f"{self.config.vocab_size - 1}; use the model's own tokenizer"
            ) from None
        return self.read(x, caches, packed)

    def read(self, x: Tensor, caches: Sequence[AttentionCache] | None = None, packed: Packed | None = None) -> Tensor:
        """Return hidden states of (B, T, C) embeddings, or (N, C) packed ones, in the same shape.

        The embeddings are those of tokens, without positions.
        """
        T = packed.longest if packed else x.shape[1]
        if self.config.n_positions < T:
            raise ValueError(f"{T} tokens are more than the model's {self.config.n_positions} positions; shorten them")
        if packed:
            positions = packed.positions
        else:
            positions = caches[0].positions if caches else torch.arange(T, device=x.device)
        if self.wpe is not None:
            x = x + self.wpe(positions)
        x = F.dropout(x, self.config.dropout, self.training)
        rotation = rotations(positions, self.config.head_width, self._dtype(x)) if self.wpe is None else None
        first = None
        for layer, block in enumerate(self.blocks):
            attend = caches[layer].attend if caches else packed.attend if packed else attend_rows
            if self.activation_checkpointing and self.training:
                x, first = checkpoint(block, x, attend, rotation, first, use_reentrant=False)
            else:
                x, first = block(x, attend, rotation, first)
        return self.ln_f(x)

    @staticmethod
    def _dtype(x: Tensor) -> torch.dtype:
        """Return the dtype of the heads: autocast's, or else that of the embeddings."""
        return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype

    @property
    def head_weight(self) -> Tensor:
        """The head's weight, (V, C): the token embedding, or a matrix of its own."""
        return self.wte.weight if self.head is None else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, (..., V), of hidden states (..., C)."""
        return F.linear(hidden, self.head_weight)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy (nats, fp32, scalar) of (B, T) targets other than -100; 0 if there are none."""
        return cross_entropy(self.hidden(ids), self.head_weight, targets) / (targets != IGNORED).sum().clamp_min(1)

    @torch.no_grad()
    def loss_sum(self, ids: Tensor, targets: Tensor) -> tuple[float, int]:
        """Return the summed cross-entropy (nats) of (B, T) targets other than -100, and their number."""
        return float(cross_entropy(self.hidden(ids), self.head_weight, targets)), int((targets != IGNORED).sum())
