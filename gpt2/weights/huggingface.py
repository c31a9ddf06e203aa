"""GPT-2's layout as `transformers` reads it; models by hub id, from the hub's cache or, when asked, the network.

Only safetensors and JSON are written.
"""

from __future__ import annotations

import json
import re
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gpt2.data.samples import network
from gpt2.model.config import ModelConfig
from gpt2.model.hardware import CPU
from gpt2.model.transformer import GPT2
from gpt2.store import model_files
from gpt2.weights import tensors as weights_tensors

if TYPE_CHECKING:
    from gpt2.data.tokenizer import Tokenizer

ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
TOKENIZER = ["tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"]
SAFE = ["config.json", *TOKENIZER, "model*.safetensors", "model.safetensors.index.json"]
PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def folder(source: str, online: bool = False, revision: str | None = None, cache: Path | None = None) -> Path:
    """Return the folder of a model: `source` if it is a directory, else the hub's copy of that id.

    Downloads happen only if `online`: weights, configuration and tokenizer. `.bin` weights are downloaded only if there
    are no safetensors. `ValueError` if the model is not available.
    """
    if Path(source).is_dir():
        return Path(source)
    if not ID.fullmatch(source):
        raise ValueError(f"{source} is neither a directory nor the id of a model on the hub, such as gpt2")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetched(patterns: list[str]) -> Path:
        return Path(snapshot_download(
            source, revision=revision, cache_dir=cache, local_files_only=not online, allow_patterns=patterns
        ))  # fmt: skip

    try:
        with network(online):
            snapshot = fetched(SAFE)
            if not [*snapshot.glob("model*.safetensors")]:
                snapshot = fetched(SAFE + PICKLED)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        remedy = f"fetch it with gpt2.weights.huggingface.folder({source!r}, online=True)"
        if online:
            remedy = "is the network reachable, and HF_HUB_OFFLINE unset?"
        raise ValueError(f"{source} is not a directory, and not in the hub's local cache; {remedy}") from None
    except GatedRepoError:
        raise ValueError(
            f"{source}: its publisher lets in only whom they granted access; ask for it on the model's page, and log "
            f"in with `hf auth login`, or set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"{source}: the hub shows no such model; check the id, and if it is a private one, log in with "
            f"`hf auth login`, or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(f"{source}: has no revision {revision!r}; give a commit, a branch or a tag of it") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"{source} can't be downloaded from the hub: {str(error).partition(chr(10))[0]}") from None
    return snapshot


PUSHED = ("config.json", "model.safetensors", "tokenizer.json")


def upload(directory: Path, repository: str, card: str, private: bool = False, **about: Any) -> str:
    """Publish a model's directory on the hub in one commit, with its card below YAML of `about`; return its address.

    `ValueError` if `transformers` could not read it, or the hub refuses it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    read_config(directory / "config.json")
    head = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["gpt2"], **about).to_yaml()
    files = {name: str(directory / name) for name in PUSHED} | {"README.md": f"---\n{head}\n---\n\n{card}".encode()}
    try:
        with network(True):
            hub = HfApi()
            url = hub.create_repo(repository, private=private, exist_ok=True)
            added = [CommitOperationAdd(name, content) for name, content in files.items()]
            hub.create_commit(url.repo_id, added, commit_message="gpt2 push")
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        first = str(error).partition("\n")[0]
        remedy = "log in with a token that may write: `hf auth login`, or set HF_TOKEN"
        raise ValueError(f"{repository}: the hub did not take the model: {first}; {remedy}") from None
    return str(url)


# Settings that our model has built in; a configuration with other values is refused.
FIXED: dict[str, Any] = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
# Fields with the same name and the same default, that of the published model, in both.
NAMES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "layer_norm_epsilon", "initializer_range")
TRANSPOSED = (".qkv.weight", ".attn.proj.weight", ".fc.weight", ".mlp.proj.weight")  # theirs are Conv1D: (in, out)
THEIRS = {
    "blocks.": "h.",
    ".attn.qkv.": ".attn.c_attn.",
    ".attn.proj.": ".attn.c_proj.",
    ".mlp.fc.": ".mlp.c_fc.",
    ".mlp.proj.": ".mlp.c_proj.",
}


def their_name(ours: str) -> str:
    """Return the name of a tensor in `transformers`: `blocks.0.attn.qkv.weight` is `h.0.attn.c_attn.weight`."""
    for part, replacement in THEIRS.items():
        ours = ours.replace(part, replacement)
    return ours


def save(model: GPT2, directory: Path, dtype: torch.dtype = torch.float32, tokenizer: Tokenizer | None = None) -> None:
    """Write config.json and model.safetensors, for `transformers.AutoModelForCausalLM.from_pretrained`.

    The tokenizer gives the end-of-text id; without one it is the last id. There is no lm_head, as it is tied.
    `ValueError` for an architecture that this layout can't hold: use `gpt2.weights.save`.
    """
    if beyond := model.config.beyond_gpt2():
        switches = ", ".join(f"{name}={value}" for name, value in beyond.items())
        raise ValueError(f"transformers' GPT-2 can't hold a model with {switches}; save it with gpt2.weights.save")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    c = model.config
    end = c.vocab_size - 1 if tokenizer is None else tokenizer.end_of_text
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": c.vocab_size,
        "n_positions": c.n_positions,
        "n_embd": c.n_embd,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_inner": None,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.dropout,
        "resid_pdrop": c.dropout,
        "layer_norm_epsilon": c.layer_norm_epsilon,
        "initializer_range": c.initializer_range,
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": str(dtype).removeprefix("torch."),
        **FIXED,
        **({} if tokenizer is None else tokenizer.record),
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        value = tensor.T if name.endswith(TRANSPOSED) else tensor
        tensors[f"transformer.{their_name(name)}"] = value.to(CPU, dtype).contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def load(directory: Path) -> GPT2:
    """Return the model that `save` or `transformers` wrote to a directory, in fp32 on the CPU.

    `ValueError` names the file and what is missing, unexpected, of another shape or not GPT-2.
    """
    directory = Path(directory)
    config = read_config(directory / "config.json")
    path, tensors = weights_tensors.weights(directory)
    for wrapper in ("module.", "_orig_mod.", "module.", "transformer."):  # of DDP, `torch.compile`, `transformers`
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    tensors = {n: t for n, t in tensors.items() if not n.endswith((".attn.bias", ".attn.masked_bias"))}
    tensors = {n: t for n, t in tensors.items() if not n.startswith("multiple_choice_head.")}  # GPT2DoubleHeadsModel's
    if "score.weight" in tensors:
        raise ValueError(
            f"{path} is a classifier's: score.weight is a head that no language model has; for its body, give the "
            f"folder that transformers.GPT2Model.from_pretrained({str(directory)!r}).save_pretrained(FOLDER) writes"
        )
    head = tensors.pop("lm_head.weight", None)
    tied = tensors.get("wte.weight")
    if head is not None and tied is None:  # of tied tensors, a file may hold either
        tensors["wte.weight"] = head
    elif head is not None and tied is not None and not (head.dtype == tied.dtype and torch.equal(head, tied)):
        raise ValueError(
            f"{path}: lm_head.weight differs from wte.weight, but GPT-2's head is tied to its embedding; is it another "
            f"architecture's, or was its vocabulary changed?"
        )
    with weights_tensors.shapes_only():  # the file's tensors become the parameters
        model = GPT2(config)

    def theirs(name: str, tensor: Tensor) -> Tensor:
        return tensor.T if name.endswith(TRANSPOSED) else tensor

    ours = model.state_dict()
    weights_tensors.check(path, tensors, {their_name(name): theirs(name, tensor) for name, tensor in ours.items()})
    state = {name: theirs(name, tensors[their_name(name)]).float().contiguous() for name in ours}
    model.load_state_dict(state, assign=True)
    return model


def read_config(path: Path) -> ModelConfig:
    """Return the settings in config.json of `transformers`; `ValueError` if it describes another model."""
    values = model_files.read_json(path)
    kind = values.get("model_type") if isinstance(values, dict) else values
    if isinstance(values, dict) and "model_type" not in values:
        raise ValueError(
            f'{path} has no model_type, so it may be any model; if it is a GPT-2, add "model_type": "gpt2"'
        )
    if not isinstance(values, dict) or kind != "gpt2":
        raise ValueError(f"{path} describes model_type={reprlib.repr(kind)}, not 'gpt2'; give a GPT-2's directory")
    if values.get("activation_function") == "gelu_pytorch_tanh":  # another name of the same function
        values["activation_function"] = "gelu_new"
    for name, expected in FIXED.items():
        if values.get(name, expected) != expected:
            raise ValueError(f"{path}: {name}={reprlib.repr(values[name])} is not supported, only {expected!r}")
    fields = {name: values[name] for name in NAMES if name in values}
    dropouts = {name: values.get(name, 0.1) for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    if not all(isinstance(p, int | float) for p in dropouts.values()) or len(set(dropouts.values())) > 1:
        raise ValueError(f"{path}: {reprlib.repr(dropouts)} is not supported; give the three the same number")
    config = model_files.validated(ModelConfig, {**fields, "dropout": dropouts["resid_pdrop"]}, path)
    if values.get("n_inner") not in (None, 4 * config.n_embd):
        raise ValueError(
            f"{path}: n_inner={reprlib.repr(values['n_inner'])} is not supported, only {4 * config.n_embd} (4 x n_embd)"
        )
    return config
