"""The settings of a model: its shape, the published sizes, and which parameters fine-tuning changes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from gpt2.settings import Settings


class ModelShape(Settings):
    """The Transformer's shape: everything but the vocabulary size, which the tokenizer decides."""

    n_layer: int = Field(12, ge=1, le=200)
    """Number of Transformer blocks."""
    n_head: int = Field(12, ge=1, le=256)
    """Attention heads per block; must divide the width."""
    n_embd: int = Field(768, ge=8, le=16384)
    """Width of the residual stream."""
    n_positions: int = Field(1024, ge=8, le=65536)
    """Longest sequence that the model has positions for (unit: tokens)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability on embeddings, attention and residual branches (GPT-2 was published with 0.1)."""
    layer_norm_epsilon: float = Field(1e-5, gt=0, le=1e-2)
    """Epsilon of normalisation: added to the variance."""
    initializer_range: float = Field(0.02, gt=0, le=1)
    """Standard deviation of initial weights; that of residual projections is divided by sqrt(2 n_layer)."""
    positions: Literal["learned", "rotary"] = "learned"
    """GPT-2's learned position embeddings, or rotary ones (Su et al. 2021)."""
    norm: Literal["layer", "rms", "none"] = "layer"
    """Layer normalisation (Ba et al. 2016), RMS normalisation (Zhang and Sennrich 2019), or none."""
    norm_placement: Literal["pre", "post"] = "pre"
    """`pre`: before each branch, as in GPT-2; `post`: after the sum, as in the first Transformer."""
    residual: bool = True
    """Each branch adds to the residual stream; without it, a branch replaces the stream (to show why that fails)."""
    activation: Literal["gelu_tanh", "gelu", "relu", "relu2", "tanh", "swiglu"] = "gelu_tanh"
    """The MLP's non-linearity: GPT-2's GELU in its tanh form, the exact GELU, ReLU, its square (So et al. 2021), tanh,
    or SwiGLU (Shazeer 2020). The MLP of SwiGLU has the same number of parameters."""
    bias: bool = True
    """Biases in linear layers and layer normalisation."""
    qk_norm: bool = False
    """Normalise queries and keys to unit RMS (Henry et al. 2020)."""
    value_residual: bool = False
    """Mix each layer's values with the first layer's, in a learned proportion (Zhou et al. 2024)."""
    tied_head: bool = True
    """Use the token embedding as the head, as GPT-2; otherwise the head is a matrix of its own."""
    zero_init: bool = False
    """Start residual projections, and a head of its own, at zero."""

    @model_validator(mode="after")
    def _rotary_turns_pairs(self):
        if self.positions == "rotary" and self.n_embd // self.n_head % 2:
            raise ValueError(
                f"positions=rotary needs an even head width, not n_embd / n_head = {self.n_embd // self.n_head}; "
                f"change n_embd or n_head"
            )
        return self

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return self.n_embd // self.n_head

    @property
    def n_inner(self) -> int:
        """Width inside the MLP: 4 n_embd. For SwiGLU's three matrices it is 8/3 n_embd, rounded to a multiple of 8."""
        return 8 * round(self.n_embd / 3) if self.activation == "swiglu" else 4 * self.n_embd

    def beyond_gpt2(self) -> dict[str, Any]:
        """Return the fields, with their values, that differ from GPT-2's architecture."""
        return {name: getattr(self, name) for name in SWITCHES if getattr(self, name) != default(name)}

    @model_validator(mode="after")
    def _heads_divide_width(self):
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}; "
                f"choose a width that is a multiple of {self.n_head}"
            )
        return self


SWITCHES = (
    "positions",
    "norm",
    "norm_placement",
    "residual",
    "activation",
    "bias",
    "qk_norm",
    "value_residual",
    "tied_head",
)
"""Fields that decide which tensors exist and what is computed from them."""


def default(switch: str) -> Any:
    """Return GPT-2's value of a switch."""
    return ModelShape.model_fields[switch].default


class ModelConfig(ModelShape):
    """A complete GPT-2 configuration."""

    vocab_size: int = Field(50257, ge=257, le=2**31 - 1)
    """Number of token ids."""

    @property
    def n_parameters(self) -> int:
        """Number of parameters; for GPT-2 (vocab_size + n_positions + 2) n_embd + n_layer (12 n_embd^2 + 13 n_embd)."""
        d, inner, bias = self.n_embd, self.n_inner, int(self.bias)
        first = inner * (2 if self.activation == "swiglu" else 1)
        norm = {"layer": d + d * bias, "rms": d, "none": 0}[self.norm]
        block = 4 * d * d + d * first + inner * d + bias * (4 * d + first + d) + 2 * norm + int(self.value_residual)
        final = norm if self.norm_placement == "pre" else 0
        return d * (self.vocab_size + self._looked_up()) + self.n_layer * block + final

    def _looked_up(self) -> int:
        """Return the number of embedding rows that are only looked up, not multiplied as a head."""
        return (self.n_positions if self.positions == "learned" else 0) + (0 if self.tied_head else self.vocab_size)

    def flops_per_token(self, context: int, with_head: bool = True) -> int:
        """Return the training FLOPs per token, 6 N + 12 n_layer n_embd T (PaLM, appendix B).

        N excludes the position embeddings and, without the language model's head, the token embeddings.
        """
        looked_up = self._looked_up() + (0 if with_head else self.vocab_size)
        return 6 * (self.n_parameters - looked_up * self.n_embd) + 12 * self.n_layer * self.n_embd * context


SIZES: dict[str, ModelShape] = {
    "gpt2": ModelShape(),
    "gpt2-medium": ModelShape(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": ModelShape(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": ModelShape(n_layer=48, n_head=25, n_embd=1600),
}
"""The four published sizes (Radford et al. 2019, table 2): 124M, 355M, 774M, 1558M parameters."""


class AdaptationConfig(Settings):
    """Which parameters fine-tuning changes: all, or a few beside a frozen pretrained model."""

    kind: Literal["full", "lora", "prefix", "head"] = "full"
    """`full`: all parameters; `lora`: low-rank changes of matrices (Hu et al. 2021); `prefix`: keys and values before
    every text (prefix tuning, Li and Liang 2021); `head`: the task's head alone. The head is trained in each."""
    rank: int = Field(8, ge=1, le=1024)
    """`lora`: rank of each change."""
    alpha: float = Field(16.0, gt=0, le=10_000)
    """`lora`: a change is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """`lora`: dropout probability on the input of a change."""
    targets: list[Literal["attn.qkv", "attn.proj", "mlp.fc", "mlp.proj"]] = Field(
        ["attn.qkv", "attn.proj", "mlp.fc", "mlp.proj"], min_length=1
    )
    """`lora`: the matrices of each block that are changed."""
    prefix_length: int = Field(16, ge=1, le=1024)
    """`prefix`: number of keys and values that each layer sees before a text."""
    model_dropout: float | None = Field(None, ge=0, lt=1)
    """`full`: dropout probability of the pretrained model during fine-tuning; empty: that of its pretraining."""

    @model_validator(mode="after")
    def _of_its_kind(self):
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets={self.targets} names a matrix twice; name each once")
        for kind, names in ADAPTATION_FIELDS.items():
            for name in names:
                if kind != self.kind and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name} is used with kind={kind} only, not with kind={self.kind}; set kind: {kind}"
                    )
        return self

    def identity(self) -> dict:
        """Return the identity without the fields that this kind does not use."""
        return {name: v for name, v in super().identity().items() if name in ("kind", *ADAPTATION_FIELDS[self.kind])}


ADAPTATION_FIELDS: dict[str, tuple[str, ...]] = {
    "full": ("model_dropout",),
    "lora": ("rank", "alpha", "dropout", "targets"),
    "prefix": ("prefix_length",),
    "head": (),
}
"""Fields that each kind of adaptation uses."""
