"""The settings of everything that `gpt2` computes, as frozen Pydantic models.

One schema has four doors: YAML presets, command-line flags, Prefect's parameter form, and what MLflow
records. Nothing here imports PyTorch, so a wrong value is refused before anything heavy is loaded.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gpt2.form import as_form

END_OF_TEXT = "<|endoftext|>"


class Settings(BaseModel):
    """Base of every settings model: frozen, no unknown keys, no NaN, field docstrings become descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True,
        json_schema_extra=as_form,
    )  # fmt: skip

    def identity(self) -> dict:
        """The JSON form of what determines the result: fields marked `identity: False` are left out."""
        dumped = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("identity") is False:
                dumped.pop(name, None)
            elif isinstance(value := getattr(self, name), Settings):
                dumped[name] = value.identity()
        return dumped


def operational(default, **bounds):
    """A field that changes how a result is reached but not the result: not part of an artifact's id."""
    return Field(default, json_schema_extra={"identity": False}, **bounds)


class ModelShape(Settings):
    """The Transformer's shape: everything but the vocabulary, which the tokenizer decides."""

    n_layer: int = Field(12, ge=1, le=200)
    """Number of Transformer blocks."""
    n_head: int = Field(12, ge=1, le=256)
    """Attention heads per block; must divide the width."""
    n_embd: int = Field(768, ge=8, le=16384)
    """Width of the residual stream."""
    n_positions: int = Field(1024, ge=8, le=65536)
    """Longest sequence, in tokens, that the model has position embeddings for."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability on embeddings, attention and residual branches (GPT-2 was published with 0.1)."""
    layer_norm_epsilon: float = Field(1e-5, gt=0, le=1e-2)
    """Added to the variance in layer normalisation."""
    initializer_range: float = Field(0.02, gt=0, le=1)
    """Standard deviation of initial weights; residual projections get 1/sqrt(2 n_layer) of it."""
    positions: Literal["learned", "rotary"] = "learned"
    """GPT-2's learned position embeddings, or rotary ones (Su et al. 2021)."""
    norm: Literal["layer", "rms", "none"] = "layer"
    """Layer normalisation (Ba et al. 2016), RMS normalisation (Zhang and Sennrich 2019), or none."""
    norm_placement: Literal["pre", "post"] = "pre"
    """Before each branch, as GPT-2, or after the sum, as the first Transformer."""
    residual: bool = True
    """Each branch adds to the stream; without it, it replaces it (to show why that fails)."""
    activation: Literal["gelu_tanh", "gelu", "relu", "relu2", "tanh", "swiglu"] = "gelu_tanh"
    """The MLP's non-linearity: GPT-2's GELU in its tanh form, the exact one, ReLU, its square (So et al. 2021), tanh,
    or SwiGLU (Shazeer 2020) in an MLP of the same number of parameters."""
    bias: bool = True
    """Biases in linear layers and layer normalisation."""
    qk_norm: bool = False
    """Queries and keys of unit RMS (Henry et al. 2020)."""
    value_residual: bool = False
    """Each layer's values are mixed with the first layer's in a learned proportion (Zhou et al. 2024)."""
    tied_head: bool = True
    """The head is the token embedding, as GPT-2's; otherwise a matrix of its own."""
    zero_init: bool = False
    """Residual projections, and a head of its own, start at zero."""

    @model_validator(mode="after")
    def _rotary_turns_pairs(self):
        if self.positions == "rotary" and self.n_embd // self.n_head % 2:
            raise ValueError(
                f"positions=rotary turns pairs, but a head is n_embd / n_head = {self.n_embd // self.n_head} wide; "
                f"choose an even width"
            )
        return self

    @property
    def head_width(self) -> int:
        """Of an attention head."""
        return self.n_embd // self.n_head

    @property
    def n_inner(self) -> int:
        """Width inside the MLP: 4 n_embd; 8/3 of it, to a multiple of 8, for SwiGLU's three matrices."""
        return 8 * round(self.n_embd / 3) if self.activation == "swiglu" else 4 * self.n_embd

    def beyond_gpt2(self) -> dict[str, Any]:
        """The fields by which this is not GPT-2's architecture, with their values."""
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
"""The fields that decide which tensors there are and what is computed from them."""


def default(switch: str) -> Any:
    """GPT-2's value."""
    return ModelShape.model_fields[switch].default


class ModelConfig(ModelShape):
    """A complete GPT-2 configuration."""

    vocab_size: int = Field(50257, ge=257, le=2**31 - 1)
    """Number of token ids."""

    @property
    def n_parameters(self) -> int:
        """Parameters; GPT-2's are (vocab_size + n_positions + 2) n_embd + n_layer (12 n_embd^2 + 13 n_embd)."""
        d, inner, bias = self.n_embd, self.n_inner, int(self.bias)
        first = inner * (2 if self.activation == "swiglu" else 1)
        norm = {"layer": d + d * bias, "rms": d, "none": 0}[self.norm]
        block = 4 * d * d + d * first + inner * d + bias * (4 * d + first + d) + 2 * norm + int(self.value_residual)
        final = norm if self.norm_placement == "pre" else 0
        return d * (self.vocab_size + self._looked_up()) + self.n_layer * block + final

    def _looked_up(self) -> int:
        """Rows of embeddings besides those that are the head."""
        return (self.n_positions if self.positions == "learned" else 0) + (0 if self.tied_head else self.vocab_size)

    def flops_per_token(self, context: int, with_head: bool = True) -> int:
        """Training FLOPs per token, 6 N + 12 n_layer n_embd T (PaLM, appendix B).

        N leaves out the position embeddings and, without the language model's head, the token embeddings.
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


class CorpusConfig(Settings):
    """Documents in: where the text is, and what counts as a good document."""

    sources: list[str] = Field(["sample:reviews"], min_length=1)
    """Files, directories, globs or fsspec URLs (.txt, .jsonl, .csv, .parquet; plain, .gz or .zst), or `sample:NAME`."""
    text_field: str = Field("text", min_length=1)
    """The column or key that holds a document's text (not used for .txt, where a line is a document)."""
    validation_share: float = Field(0.02, gt=0, le=0.5)
    """Share of documents, chosen by content hash, that training never sees."""
    max_bad_share: float = Field(0.001, ge=0, le=1)
    """Largest tolerated share of quarantined documents; more stops the stage."""
    min_chars: int = Field(1, ge=1)
    """Shorter documents are quarantined (unit: characters after normalisation)."""
    max_chars: int = Field(1_000_000, ge=1, le=100_000_000)
    """Longer documents are quarantined (unit: characters)."""
    piece_bytes: int = operational(4_000_000, ge=1_000, le=1_000_000_000)
    """Size of the pieces that the cleaned text is cut into, the unit of parallel work and of resuming."""

    @model_validator(mode="after")
    def _lengths(self):
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars={self.min_chars} is above max_chars={self.max_chars}; lower min_chars")
        return self


class TokenizerConfig(Settings):
    """Byte-level BPE: trained on the corpus, or GPT-2's own."""

    kind: Literal["train", "gpt2"] = "train"
    """`train` learns merges from the corpus; `gpt2` uses the published vocabulary (50,257 ids)."""
    vocab_size: int = Field(8192, ge=300, le=1_000_000)
    """Number of token ids, the end-of-text token included."""
    training_chars: int = Field(40_000_000, ge=10_000)
    """At most this many characters of the training split, spread evenly over it, are used to learn merges."""
    token_dtype: Literal["auto", "uint16", "uint32"] = "auto"
    """Width of a token on disk; `auto` takes uint16 where the vocabulary fits it."""

    @model_validator(mode="after")
    def _vocabulary_fits(self):
        if self.kind == "gpt2" and self.vocab_size != 50257:
            raise ValueError(
                f"vocab_size={self.vocab_size} but GPT-2's own vocabulary has 50257; set vocab_size: 50257"
            )
        if self.token_dtype == "uint16" and self.vocab_size > 65536:
            raise ValueError(
                f"vocab_size={self.vocab_size} does not fit token_dtype=uint16 (65536 ids); use uint32 or auto"
            )
        return self

    @property
    def dtype(self) -> str:
        """The NumPy dtype of a token on disk."""
        if self.token_dtype != "auto":
            return self.token_dtype
        return "uint16" if self.vocab_size <= 65536 else "uint32"


class OptimizerConfig(Settings):
    """The optimizer and its learning-rate schedule."""

    kind: Literal["adamw", "muon"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019), or Muon (Jordan et al. 2024) for the matrices inside the blocks and AdamW
    for all else, at one learning rate: Muon's updates are scaled to AdamW's size (Liu et al. 2025)."""
    learning_rate: float = Field(6e-4, gt=0, le=1)
    """Peak learning rate."""
    embedding_rate: float = Field(1.0, gt=0, le=100)
    """Learning rate of the token embeddings, as a multiple of the others'."""
    final_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate at the last step, as a share of the peak."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After warm-up: cosine decay; `wsd` (warm-up, stable, linear decay); or constant."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    decay_share: float = Field(0.2, gt=0, le=1)
    """`wsd`: share of all steps spent in the final decay."""
    weight_decay: float = Field(0.1, ge=0, le=10)
    """Decoupled weight decay of matrices; biases, gains and embeddings of positions have none."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the first moment."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW's decay of the second moment."""
    epsilon: float = Field(1e-8, gt=0, le=1e-2)
    """AdamW's epsilon."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's decay of the average of gradients."""
    clip: float = Field(1.0, ge=0, le=1e6)
    """Largest global gradient norm; 0 switches clipping off."""


class GuardConfig(Settings):
    """Which steps are left out, and when training goes back."""

    max_norm_ratio: float = Field(50, ge=0, le=1e9)
    """A step with a gradient norm above this many times the median of the last 100 is left out, as is one that is
    not finite; 0 leaves out only the latter."""
    max_bad_steps: int = Field(10, ge=1, le=10_000)
    """After so many such steps in a row training goes back to the last checkpoint and bars their samples."""
    max_rollbacks: int = Field(3, ge=0, le=1000)
    """After going back so many times it gives up."""


class AdaptationConfig(Settings):
    """Which parameters fine-tuning changes: all, or few beside a pretrained model that stays as it is."""

    kind: Literal["full", "lora", "prefix", "head"] = "full"
    """All parameters; low-rank changes of matrices (LoRA, Hu et al. 2021); keys and values before every text (prefix
    tuning, Li and Liang 2021); or the task's head alone. The head is trained in each."""
    rank: int = Field(8, ge=1, le=1024)
    """`lora`: rank of each change."""
    alpha: float = Field(16.0, gt=0, le=10_000)
    """`lora`: a change is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """`lora`: dropout probability on what enters a change."""
    targets: list[Literal["attn.qkv", "attn.proj", "mlp.fc", "mlp.proj"]] = Field(
        ["attn.qkv", "attn.proj", "mlp.fc", "mlp.proj"], min_length=1
    )
    """`lora`: the matrices of each block that are changed."""
    prefix_length: int = Field(16, ge=1, le=1024)
    """`prefix`: how many keys and values each layer sees before a text."""
    model_dropout: float | None = Field(None, ge=0, lt=1)
    """`full`: dropout probability of the pretrained model while it is fine-tuned; empty: that of its pretraining."""

    @model_validator(mode="after")
    def _of_its_kind(self):
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets={self.targets} names a matrix twice; name each once")
        for kind, names in ADAPTATION_FIELDS.items():
            for name in names:
                if kind != self.kind and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name} is read with kind={kind} only, not with kind={self.kind}; set kind: {kind}"
                    )
        return self

    def identity(self) -> dict:
        """Without what its kind does not read."""
        return {name: v for name, v in super().identity().items() if name in ("kind", *ADAPTATION_FIELDS[self.kind])}


ADAPTATION_FIELDS: dict[str, tuple[str, ...]] = {
    "full": ("model_dropout",),
    "lora": ("rank", "alpha", "dropout", "targets"),
    "prefix": ("prefix_length",),
    "head": (),
}
"""What each kind of adaptation reads."""


class TrainConfig(Settings):
    """One training run: how long, in what batches, at what precision, and what is saved when."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps. Without it, `epochs` decides."""
    epochs: float | None = Field(None, gt=0, le=10_000)
    """Passes over the training split. With `steps` too, the limit that `steps` may not exceed (1 if absent)."""
    batch_size: int = Field(32, ge=1, le=1_000_000)
    """Global batch: samples per optimizer step, over all workers and accumulation."""
    micro_batch_size: int = operational(8, ge=1, le=65536)
    """Samples that one worker holds at a time; gradients accumulate up to the global batch."""
    context: int = Field(256, ge=8, le=65536)
    """Longest training sequence, in tokens."""
    precision: Literal["auto", "bf16", "fp32", "fp16"] = "auto"
    """Arithmetic of the forward and backward pass; master weights are fp32. `auto` is bf16 on GPUs and on CPUs that
    multiply it natively, else fp32: other CPUs emulate bf16, ten times as slowly. fp16 needs a GPU."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its learning-rate schedule."""
    guard: GuardConfig = GuardConfig()
    """Steps that would do harm."""
    activation_checkpointing: bool = operational(False)
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = operational(False)
    """Compile the model with `torch.compile` (needs a C++ compiler on CPU); costs 20 to 60 s at the start."""
    eval_every: int = operational(100, ge=1)
    """Steps between evaluations on the validation split."""
    eval_samples: int = operational(128, ge=1)
    """Validation samples per evaluation."""
    checkpoint_every: int = operational(100, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = operational(2, ge=1, le=1000)
    """The latest complete checkpoints kept while training; the one with the best validation loss is kept too."""
    archive_every: int | None = operational(None, ge=1)
    """Steps between checkpoints that are kept until the training ends."""
    keep_state: bool = operational(False)
    """Keep the last checkpoint with the model: twelve bytes per parameter, for a later `continue_from`."""
    continue_from: str | None = Field(None, pattern="^[0-9a-f]{16}$")
    """Id of an earlier training of the same model on the same data, ended with `keep_state` or not ended: this one
    goes on from its last checkpoint, with another length, learning rate or guard."""
    log_every: int = operational(10, ge=1)
    """Steps between lines of progress."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seeds initialisation, data order, dropout and sampling."""

    @model_validator(mode="after")
    def _relations(self):
        if self.steps is None and self.epochs is None:
            raise ValueError("neither steps nor epochs is set; set one of them")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by micro_batch_size={self.micro_batch_size}; "
                f"choose a micro batch that divides the global batch"
            )
        if self.steps is not None:
            self.check_warmup(self.steps)
        return self

    def check_warmup(self, steps: int) -> None:
        """Raise `ValueError` where the warm-up is longer than `steps` of training."""
        if self.optimizer.warmup_steps > steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} is longer than the training's {steps} steps; "
                f"set it to at most {steps}"
            )

    def total_steps(self, n_samples: int) -> int:
        """Optimizer steps for a training split of `n_samples`; `ValueError` where they repeat data undeclared."""
        if n_samples < self.batch_size:
            raise ValueError(
                f"the training split has {n_samples} samples, fewer than one global batch (batch_size="
                f"{self.batch_size}); add data, shorten the context or lower batch_size"
            )
        if self.steps is None:
            assert self.epochs is not None
            steps = max(1, round(self.epochs * n_samples / self.batch_size))
            self.check_warmup(steps)
            return steps
        epochs = self.steps * self.batch_size / n_samples
        if epochs > (self.epochs or 1.0) + 1e-9:
            raise ValueError(
                f"steps={self.steps} x batch_size={self.batch_size} is {epochs:.2f} passes over {n_samples} samples, "
                f"but epochs={self.epochs or 1.0:g} are declared; lower steps or set epochs: {math.ceil(epochs)}"
            )
        return self.steps
