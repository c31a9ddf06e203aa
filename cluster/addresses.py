"""What `gpt2.load` finds where this package is installed: the entry point of `models:/` addresses."""

from __future__ import annotations

from pathlib import Path

from cluster.home import configure


def models(address: str) -> tuple[Path, str]:
    """(the folder of the verified files, the version's exact address); see `cluster.pulling.pull`."""
    configure()  # before MLflow is imported, which would phone home
    from cluster.pulling import pull

    return pull(address)
