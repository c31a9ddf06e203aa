"""Interpretability: attention maps, the residual stream, the logit lens and gradients of a model.

The forward pass is the model's own, in fp32 and without dropout. Hooks on its modules record the stream, and a
key-value cache records the attention weights. Both are removed afterwards and do not affect training.

Shapes: B batch, T time, C width, V vocabulary, L layers, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model.layers import IGNORED, cross_entropy
from gpt2.model.transformer import GPT2, Block, KVCache, Prefix


@dataclass(frozen=True)
class Trace:
    """The intermediate values of one forward pass over (B, T) ids."""

    attention: Tensor
    """(L, B, H, T, T): attention weights of each position (row) on each position (column). Rows sum to 1."""
    stream: Tensor
    """(2 L + 1, B, T, C): the residual stream after the embeddings, then after each attention and each MLP in turn."""
    branches: Tensor
    """(2 L, B, T, C): outputs of each attention and each MLP. With residuals and pre-norm, as in GPT-2, they are added:
    stream[i + 1] = stream[i] + branches[i]."""
    logits: Tensor
    """(B, T, V): the model's output."""


def trace(model: GPT2, ids: Tensor) -> Trace:
    """Return the trace of a forward pass over (B, T) ids. Raises `ValueError` if T exceeds the model's positions."""
    with torch.no_grad(), evaluating(model):
        attentions = watched(model, ids)
        with watching(model) as (stream, branches):
            logits = model.logits(model.hidden(ids, [*attentions]))
        maps = torch.stack([layer.weights for layer in attentions])
        return Trace(maps, torch.stack(stream), torch.stack(branches), logits)


def lens(model: GPT2, stream: Tensor) -> Tensor:
    """Return (..., V) logits of (..., C) states of the stream, by the logit lens (nostalgebraist 2020).

    The lens applies the final normalisation and the head to an earlier state. The last state gives the model's logits.
    """
    with torch.no_grad(), evaluating(model):
        return model.logits(model.ln_f(stream))


def direct_effects(model: GPT2, seen: Trace, tokens: Tensor) -> Tensor:
    """Return (2 L + 2, B, T) direct effects of embeddings, branches and final bias on the logits of (B, T) `tokens`.

    Logits are centred by their mean over the vocabulary, which softmax ignores. The final normalisation divides by one
    number per position. With that number fixed, the logit is a sum of direct effects (Elhage et al. 2021). Raises
    `ValueError` if branches do not add to the stream.
    """
    c = model.config
    if not c.residual or c.norm_placement != "pre":
        raise ValueError(
            f"residual={c.residual}, norm_placement={c.norm_placement}: the logits are not a sum over branches; "
            f"take a model with residual=True and norm_placement=pre"
        )
    with torch.no_grad():
        parts = torch.cat([seen.stream[:1], seen.branches])
        whole = seen.stream[-1]
        if c.norm == "layer":
            parts, whole = (x - x.mean(-1, keepdim=True) for x in (parts, whole))
        scale = 1 if c.norm == "none" else (whole.square().mean(-1, keepdim=True) + c.layer_norm_epsilon).rsqrt()
        gain, bias = (getattr(model.ln_f, name, None) for name in ("weight", "bias"))
        directions = model.head_weight[tokens] - model.head_weight.mean(0)
        effects = (parts * scale * (1 if gain is None else gain) * directions).sum(-1)
        last = torch.zeros_like(effects[:1]) if bias is None else (bias * directions).sum(-1)[None]
        return torch.cat([effects, last])


def losses_without(model: GPT2, ids: Tensor, targets: Tensor, heads: Collection[tuple[int, int]] = ()) -> Tensor:
    """Return the (B,) mean losses (nats) of texts with (B, T) targets while some heads are ablated.

    `heads` are pairs (layer, head) from 0; their output is set to zero (Michel et al. 2019). Raises `ValueError` for a
    head that the model does not have.
    """
    c = model.config
    for layer, head in heads:
        if not (0 <= layer < c.n_layer and 0 <= head < c.n_head):
            raise ValueError(f"head {(layer, head)} of {c.n_layer} layers with {c.n_head} heads each; count from 0")
    with torch.no_grad(), evaluating(model):
        attentions = watched(model, ids)
        for layer, head in heads:
            attentions[layer].silent.add(head)
        logits = model.logits(model.hidden(ids, [*attentions])).transpose(1, 2)
        losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        return losses.sum(1) / (targets != IGNORED).sum(1).clamp_min(1)


def stream_gradients(model: GPT2, ids: Tensor, targets: Tensor) -> Tensor:
    """Return the (2 L + 1,) norms of the mean loss's gradients with respect to each state of the stream.

    The layers below a state receive no other gradient.
    """
    with evaluating(model), watching(model) as (stream, _):
        loss = mean_loss(model, model.hidden(ids), targets)
        return torch.stack([g.norm() for g in torch.autograd.grad(loss, stream)])


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Return the gradient norms of the last backward pass, by part of the language model inside `model`.

    The parts are `embeddings`, `block 1` to `block L`, `final norm` and `head`. Parts without parameters of their own
    are left out. Raises `ValueError` without gradients.
    """
    [gpt] = [m for m in model.modules() if isinstance(m, GPT2)]
    parts: dict[str, nn.Module | None] = {"embeddings": nn.ModuleList([m for m in (gpt.wte, gpt.wpe) if m])}
    parts |= {f"block {i}": block for i, block in enumerate(gpt.blocks, 1)}
    parts |= {"final norm": gpt.ln_f, "head": gpt.head}
    norms = {}
    for name, part in parts.items():
        gradients = [p.grad for p in part.parameters() if p.grad is not None] if part else []
        if gradients:
            norms[name] = float(nn.utils.get_total_norm(gradients))
    if not norms:
        raise ValueError("the model has no gradients; call backward() first, and read them before they are set to None")
    return norms


def similarity(stream: Tensor) -> Tensor:
    """Return the (...,) mean cosine similarity of two different positions of a text, given (..., B, T, C) states.

    A value of 1 means rank collapse: all positions hold the same state (Dong et al. 2021).
    """
    T = stream.shape[-2]
    if T < 2:
        raise ValueError(f"a text of {T} token has no two positions; give a longer one")
    unit = F.normalize(stream.double(), dim=-1)
    total = unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))
    return (total / (T * (T - 1))).mean(-1)


class RecordedAttention(KVCache):
    """Attention of one layer over (B, T) ids, through the key-value cache, that keeps its weights."""

    def __init__(self, model: GPT2, ids: Tensor):
        B, T = ids.shape
        super().__init__(B, T, model.config, model.wte.weight)
        self.positions = torch.arange(T, device=ids.device).expand(B, -1)
        self.weights = torch.empty(0)
        """(B, H, T, T), after the forward pass."""
        self.silent: set[int] = set()
        """Ablated heads, whose output is zero."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, prefix: Prefix | None = None) -> Tensor:
        if prefix is not None:
            raise ValueError(
                "the model reads a prefix before each text; remove it by `gpt2.model.adapters.use(model, None)`"
            )
        scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        self.weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        y = super().attend(q, k, v, dropout)
        y[:, :, sorted(self.silent)] = 0
        return y


def watched(model: GPT2, ids: Tensor) -> list[RecordedAttention]:
    """Return an attention that keeps its weights for each layer."""
    return [RecordedAttention(model, ids) for _ in model.blocks]


@contextmanager
def watching(model: GPT2) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Record forward passes while open, into the lists of stream states and of branch outputs."""
    stream: list[Tensor] = []
    branches: list[Tensor] = []
    with ExitStack() as hooks:
        for module in readers(model):
            hook = module.register_forward_pre_hook(lambda _, args: stream.append(args[0]))
            hooks.callback(hook.remove)
        for block in blocks(model):
            for branch in (block.attn, block.mlp):
                hook = branch.register_forward_hook(
                    lambda _, args, out: branches.append(out[0] if isinstance(out, tuple) else out)
                )
                hooks.callback(hook.remove)
        yield stream, branches


def blocks(model: GPT2) -> list[Block]:
    """Return the model's blocks, typed."""
    return cast(list[Block], list(model.blocks))


def readers(model: GPT2) -> Iterator[nn.Module]:
    """Yield the modules that read the stream itself, in order."""
    for block in blocks(model):
        yield from (block.ln_1, block.ln_2) if block.pre else (block.attn, block.mlp)
    yield model.ln_f


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode while open, and restore its mode afterwards."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def mean_loss(model: GPT2, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy (nats, scalar) of (B, T) targets; targets of -100 are ignored."""
    return cross_entropy(hidden, model.head_weight, targets) / (targets != IGNORED).sum().clamp_min(1)
