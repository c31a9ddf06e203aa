"""Real ranks without Ray: processes with gloo and a DeepSpeed engine, for what would take Ray a minute a case."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 300) -> list[Any]:
    """What `function(*arguments)` returns on each of `world_size` ranks; a rank's error is raised here."""
    context = multiprocessing.get_context("forkserver")  # DeepSpeed is imported once, then forked
    context.set_forkserver_preload(["tests.cluster.preload"])
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(world_size, mp_context=context) as pool:
        meeting = f"file://{Path(folder) / 'meeting'}"
        ranks = [pool.submit(_rank, r, world_size, meeting, function, arguments) for r in range(world_size)]
        try:
            for rank in as_completed(ranks, timeout):
                rank.result()
        except BaseException:  # the others wait for the one that failed
            for process in list(pool._processes.values()):
                process.kill()
            raise
        return [rank.result() for rank in ranks]


def _rank(rank: int, world_size: int, meeting: str, function: Callable[..., Any], arguments: tuple) -> Any:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    try:
        return function(*arguments)
    finally:
        torch.distributed.destroy_process_group()
