"""Any task of lm-evaluation-harness, by the harness itself, on a model's directory and local files."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

INSTALL = "lm-eval is not installed; pip install 'gpt2-pipeline[lm-eval]'"


def measure_by_harness(
    name: str, model: Path, folder: Path, limit: int | None = None, batch_size: int = 16
) -> dict[str, Any] | str:
    """`task`, `file`, `documents`, `metrics` and 95 % `intervals` (normal, of the harness's standard errors); or, as a
    text, why there is none.

    The task is `folder/NAME.yaml`, in the harness's form, with paths of data relative to the folder; without such a
    file one that the harness brings, whose data must lie in the cache of `datasets`: nothing is fetched. The model is
    read by `transformers`, so its architecture must be GPT-2's.
    """
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[variable] = "1"
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        return INSTALL
    own, loaded = folder / f"{name}.yaml", {"pretrained": str(model.resolve()), "dtype": "float32"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with contextlib.chdir(folder):
            manager = TaskManager(include_path=str(folder.resolve()), include_defaults=not own.exists())
            found = lm_eval.simple_evaluate(
                model="hf", model_args=loaded, tasks=[name], task_manager=manager, limit=limit, device=device,
                batch_size=batch_size, bootstrap_iters=100, log_samples=False,
            )  # fmt: skip
    except Exception as error:  # the harness, datasets and transformers raise whatever comes up
        return f"the harness says: {type(error).__name__}: {(str(error).strip() or 'nothing more').splitlines()[0]}"
    values = found["results"][name]
    metrics = {k.removesuffix(",none"): float(v) for k, v in values.items() if is_metric(k, v)}
    intervals = {}
    for metric, value in metrics.items():
        deviation = values.get(f"{metric}_stderr,none")
        if isinstance(deviation, float):
            intervals[metric] = [value - 1.96 * deviation, value + 1.96 * deviation]
    documents = int(found["n-samples"][name]["effective"])
    source = str(own) if own.exists() else "the harness's own"
    return {"task": name, "file": source, "documents": documents, "metrics": metrics, "intervals": intervals}


def is_metric(name: str, value: Any) -> bool:
    """Whether the harness's result is a figure, no error of one."""
    return "," in name and "_stderr" not in name and isinstance(value, (int, float))
