"""`make notebooks`: run notebooks from the top, each in a clean kernel, and keep their outputs in them."""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

SECONDS = 1800
"""A cell that runs longer hangs."""


def execute(path: Path, folder: Path | None = None) -> nbformat.NotebookNode:
    """The notebook with fresh outputs; it runs in `folder`, or where it lies. `CellExecutionError` tells cell and
    traceback where it fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,  # what changes with each run has no place in a repository
        extra_arguments=["--IPKernelApp.log_level=40"],  # or it warns of its own loopback connection
        resources={"metadata": {"path": str(folder or path.parent)}},
    )
    return client.execute()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        started = time.monotonic()
        nbformat.write(execute(Path(name)), name)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
