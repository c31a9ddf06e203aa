"""RecTools' SASRec (Kang and McAuley 2018) on a leave-last-out split, for `ranking`; run by an environment of its own.

python sasrec.py HISTORIES.json RANKS.json: it learns from all but the last two choices, is taken as it was when it
ranked the second to last best, settings and epochs alike, and then ranks the last after reading all before it.
"""

import itertools
import json
import logging
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

SETTINGS = {"n_factors": (64, 128), "dropout_rate": (0.2, 0.5)}
EVERY, EPOCHS, PATIENCE = 3, 60, 3
"""Epochs between looks at the validation, at most, and looks without a better one after which it stops."""


def main(source: str, out: str) -> None:
    histories = [np.array(h) for h in json.loads(Path(source).read_text())]
    found = [search(histories, dict(zip(SETTINGS, v, strict=True))) for v in itertools.product(*SETTINGS.values())]
    Path(out).write_text(json.dumps(max(found, key=lambda pair: pair[0])[1].tolist()))


def search(histories, settings: dict) -> tuple[float, np.ndarray]:
    """(NDCG@10 of the validation's choices, ranks of the last ones) at the best epoch."""
    started, best, at = time.perf_counter(), (0.0, np.array([])), 0
    model, data, more = sasrec(settings), dataset([h[:-2] for h in histories]), dataset([h[:-1] for h in histories])
    for epochs in range(EVERY, EPOCHS + 1, EVERY):
        learn(model, data, EVERY, seed=epochs)
        ndcg = ndcg_at_10(ranks(model, data, [h[-2] for h in histories]))
        if ndcg > best[0]:
            best, at = (ndcg, ranks(model, more, [h[-1] for h in histories])), epochs
        told = {**settings, "epochs": epochs, "validation": round(ndcg, 4), "s": round(time.perf_counter() - started)}
        print(json.dumps(told), file=sys.stderr, flush=True)
        if epochs - at >= PATIENCE * EVERY:
            break
    print(json.dumps({**settings, "epochs": at, "validation": best[0], "test": ndcg_at_10(best[1])}), flush=True)
    return best


def sasrec(settings: dict):
    """The model, with the library's defaults for what is not set: 2 blocks, 4 heads, full softmax, Adam 1e-3. The
    batches are smaller than its 128 histories, of which 943 make 8 steps an epoch."""
    import torch
    from rectools.models import SASRecModel

    torch.manual_seed(0)
    return SASRecModel(session_max_len=100, batch_size=32, deterministic=True, **settings)


def learn(model, data, epochs: int, seed: int) -> None:
    """So many epochs more."""
    import torch

    torch.manual_seed(seed)
    model.fit_partial(data, min_epochs=epochs, max_epochs=epochs)


def dataset(histories):
    """The choices in order: a second between one and the next."""
    from rectools.dataset import Dataset

    users = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    seconds = np.concatenate([np.arange(len(h)) for h in histories])
    times = pd.Timestamp("2000-01-01") + pd.to_timedelta(seconds, unit="s")
    columns = {"user_id": users, "item_id": np.concatenate(histories), "weight": 1.0, "datetime": times}
    return Dataset.construct(pd.DataFrame(columns))


def ranks(model, data, wanted) -> np.ndarray:
    """(users,) the wanted item's rank, from 1, among what the user has not chosen; an item never seen is last."""
    known = data.item_id_map.size
    table = model.recommend(np.arange(len(wanted)), data, k=known, filter_viewed=True)
    hits = table[table["item_id"].to_numpy() == np.asarray(wanted)[table["user_id"].to_numpy()]]
    found = np.full(len(wanted), known)
    found[hits["user_id"].to_numpy()] = hits["rank"].to_numpy()
    return found


def ndcg_at_10(found: np.ndarray) -> float:
    return float(np.where(found <= 10, 1 / np.log2(found + 1.0), 0).mean())


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    main(sys.argv[1], sys.argv[2])
