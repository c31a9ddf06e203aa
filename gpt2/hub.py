"""Models by their id on the Hugging Face hub: from its local cache, or, when asked, from the network."""

from __future__ import annotations

import re
from pathlib import Path

ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
TOKENIZER = ["tokenizer.json", "vocab.json", "merges.txt"]
SAFE = ["config.json", *TOKENIZER, "model*.safetensors", "model.safetensors.index.json"]
PICKLED = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def folder(source: str, online: bool = False, revision: str | None = None, cache: Path | None = None) -> Path:
    """The folder of a model: `source` where it is a directory, else the hub's copy of that id.

    Only weights, configuration and tokenizer are fetched, `.bin` weights only where there are no safetensors, and
    only `online`. `ValueError` where it can't be had.
    """
    if Path(source).is_dir():
        return Path(source)
    if not ID.fullmatch(source):
        raise ValueError(f"{source} is neither a directory nor the id of a model on the hub, such as gpt2")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def fetched(patterns: list[str]) -> Path:
        return Path(snapshot_download(
            source, revision=revision, cache_dir=cache, local_files_only=not online, allow_patterns=patterns
        ))  # fmt: skip

    try:
        found = fetched(SAFE)
        if not [*found.glob("model*.safetensors")]:
            found = fetched(SAFE + PICKLED)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        remedy = f"fetch it with gpt2.hub.folder({source!r}, online=True)"
        if online:
            remedy = "is the network reachable, and HF_HUB_OFFLINE unset?"
        raise ValueError(f"{source} is no directory and not in the hub's local cache; {remedy}") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"{source} can't be had from the hub: {str(error).partition(chr(10))[0]}") from None
    return found
