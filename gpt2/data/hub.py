"""The hub's client, which is offline in every process of ours unless the hub is asked for by name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

SCHEME = "hf://"
OFFLINE_BY_DEFAULT = "on"
"""Our value of HF_HUB_OFFLINE. The hub's client reads it as 1, which is what users set."""


@contextlib.contextmanager
def network(online: bool) -> Iterator[None]:
    """Let the hub's client reach the network within the block, if `online`.

    The client reads HF_HUB_OFFLINE once, when it is imported. Our own default is lifted; a user's value holds.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if online and os.environ.get("HF_HUB_OFFLINE") == OFFLINE_BY_DEFAULT:
        constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def reach(address: str) -> str:
    """Return the address; if it is one of the hub, let the hub's client use the network from now on.

    `ValueError` if a user's HF_HUB_OFFLINE forbids it.
    """
    if address.startswith(SCHEME):
        from huggingface_hub import constants

        if os.environ.get("HF_HUB_OFFLINE") == OFFLINE_BY_DEFAULT:
            constants.HF_HUB_OFFLINE = False
        if constants.HF_HUB_OFFLINE:
            raise ValueError("HF_HUB_OFFLINE keeps the hub from being asked; unset it")
    return address
