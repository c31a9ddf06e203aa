"""A report of made-up answers to posts, stored as the pipeline stores it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpt2.evaluation import report
from gpt2.tasks.task import task

CLEAN: dict[str, Any] = {"unit": "post", "units": 100, "share": 0.0, "contaminated": [], "by": []}


def stored(
    folder: Path, truth: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, labels: Sequence[str], **more: Any
) -> dict[str, Any]:
    """The report of (n,) predicted classes, beside a baseline that always gives the first; `more` is added to it."""
    table = pd.DataFrame({"text": [f"post {i}" for i in range(len(truth))], "label": truth, "predicted": predicted})
    table["confidence"] = confidence
    for i, label in enumerate(labels):
        table[f"probability_{label}"] = np.where(predicted == i, confidence, (1 - confidence) / (len(labels) - 1))
    table["predicted by majority class"], table["confidence of majority class"] = 0, 0.45
    folder.mkdir()
    table.to_parquet(folder / "predictions.parquet", index=False)
    found = task("sentiment").unit_results(table)
    values = {s: {m: found.value(m, s) for m in found.metrics} for s in found.systems}
    content = {
        "task": "sentiment", "title": "Posts", "primary": {"name": "macro_f1", "higher_is_better": True},
        "floor": "majority class", "metrics": values.pop("model"), "baselines": values, "counts": {"test": len(table)},
        "samples": {}, "figures": [], "contamination": CLEAN, **more, **found.summary(),
    }  # fmt: skip
    return report.write(content, folder)
