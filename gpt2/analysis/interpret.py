"""What a model does on its way from tokens to logits: attention, the residual stream, the logit lens, gradients.

The forward pass is the model's own, in fp32 and without dropout. Hooks on its modules note what passes, a cache of keys
and values notes who attends to whom; both are gone afterwards, and training knows nothing of them.

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

from gpt2.model.loss import IGNORED, cross_entropy
from gpt2.model.transformer import GPT2, Block, KVCache, Prefix


@dataclass(frozen=True)
class Trace:
    """One forward pass over (B, T) ids."""

    attention: Tensor
    """(L, B, H, T, T): the share of its attention that each position (row) gives to each (column). Rows sum to 1."""
    stream: Tensor
    """(2 L + 1, B, T, C): the residual stream after the embeddings, then after each attention and each MLP in turn."""
    branches: Tensor
    """(2 L, B, T, C): what each attention and each MLP puts out. With residuals and pre-norm, as in GPT-2, it is what
    they add: stream[i + 1] = stream[i] + branches[i]."""
    logits: Tensor
    """(B, T, V)."""


def trace(model: GPT2, ids: Tensor) -> Trace:
    """What happens while the model reads (B, T) ids. `ValueError` where T is more than its positions."""
    with torch.no_grad(), evaluating(model):
        attentions = watched(model, ids)
        with watching(model) as (stream, branches):
            logits = model.logits(model.hidden(ids, [*attentions]))
        maps = torch.stack([layer.weights for layer in attentions])
        return Trace(maps, torch.stack(stream), torch.stack(branches), logits)


def lens(model: GPT2, stream: Tensor) -> Tensor:
    """(..., C) states of the stream to (..., V) logits: what the model would say if it stopped there.

    The logit lens (nostalgebraist 2020): the final normalisation and the head, read early. The last state gives the
    model's own logits.
    """
    with torch.no_grad(), evaluating(model):
        return model.logits(model.ln_f(stream))


def direct_effects(model: GPT2, seen: Trace, tokens: Tensor) -> Tensor:
    """(2 L + 2, B, T): what the embeddings, each branch and the final norm's bias add to the logits of (B, T) `tokens`.

    Logits count from their mean over the vocabulary, which softmax ignores. The final normalisation divides by one
    number per position; with that number held fixed the logit is a sum over all that was added to the stream (Elhage
    et al. 2021), and these are its terms. `ValueError` where branches do not add to the stream.
    """
    c = model.config
    if not c.residual or c.norm_placement != "pre":
        raise ValueError(
            f"residual={c.residual}, norm_placement={c.norm_placement}: the logits are no sum over branches; "
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
    """(B,): the mean loss (nats) of each text of (B, T) targets while these (layer, head), from 0, are silent: what
    they attend to adds nothing (Michel et al. 2019). `ValueError` for a head that the model has not."""
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
    """(2 L + 1,): norms of the gradients of the mean loss with respect to each state of the stream.

    What the layers below a state can learn from: it is all that reaches them.
    """
    with evaluating(model), watching(model) as (stream, _):
        loss = mean_loss(model, model.hidden(ids), targets)
        return torch.stack([g.norm() for g in torch.autograd.grad(loss, stream)])


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Norms of the gradients that the last backward pass left, by part of the language model inside `model`.

    `embeddings`, `block 1` to `block L`, `final norm`, `head`, of these those that have parameters of their own.
    `ValueError` without gradients.
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
        raise ValueError("the model has no gradients; call backward() first, and look before they are set to None")
    return norms


def similarity(stream: Tensor) -> Tensor:
    """(..., B, T, C) states to (...,): the mean cosine of two different positions of a text.

    At 1 all positions hold the same, and what came in is lost: rank collapse (Dong et al. 2021).
    """
    T = stream.shape[-2]
    if T < 2:
        raise ValueError(f"a text of {T} token has no two positions; give a longer one")
    unit = F.normalize(stream.double(), dim=-1)
    total = unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))
    return (total / (T * (T - 1))).mean(-1)


class RecordedAttention(KVCache):
    """One layer's attention over (B, T) ids: computed as a cache's, and its weights kept."""

    def __init__(self, model: GPT2, ids: Tensor):
        B, T = ids.shape
        super().__init__(B, T, model.config, model.wte.weight)
        self.positions = torch.arange(T, device=ids.device).expand(B, -1)
        self.weights = torch.empty(0)
        """(B, H, T, T), once it has attended."""
        self.silent: set[int] = set()
        """Heads that put out nothing."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, prefix: Prefix | None = None) -> Tensor:
        if prefix is not None:
            raise ValueError(
                "the model reads a prefix before each text; `gpt2.model.adapters.use(model, None)` puts it away"
            )
        scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        self.weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        y = super().attend(q, k, v, dropout)
        y[:, :, sorted(self.silent)] = 0
        return y


def watched(model: GPT2, ids: Tensor) -> list[RecordedAttention]:
    """A watched attention per layer."""
    return [RecordedAttention(model, ids) for _ in model.blocks]


@contextmanager
def watching(model: GPT2) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """While open, a forward pass fills the lists: states of the stream, outputs of branches."""
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
    """The model's blocks, by their type."""
    return cast(list[Block], list(model.blocks))


def readers(model: GPT2) -> Iterator[nn.Module]:
    """The modules that read the stream itself, in order."""
    for block in blocks(model):
        yield from (block.ln_1, block.ln_2) if block.pre else (block.attn, block.mlp)
    yield model.ln_f


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, and afterwards as before."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


def mean_loss(model: GPT2, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy (nats, scalar) of (B, T) targets; -100 is left out."""
    return cross_entropy(hidden, model.head_weight, targets) / (targets != IGNORED).sum().clamp_min(1)
