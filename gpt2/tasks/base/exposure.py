"""How much of its planted canaries a model knows by heart: their exposure (Carlini et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2.data.canaries import everything
from gpt2.data.config import SPACE, CanaryConfig
from gpt2.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2.model.transformer import GPT2

METRIC = "canary_exposure"
REFERENCES = 2048
"""Texts of the space, never planted, among which a canary is ranked. Where losses are skew normal, so many tell an
exposure of 14 to 26 bits to 7 % or better (standard deviation over 30 samples, for each of three skews)."""
AHEAD = 10
"""With fewer references than this ahead of it the sample says little of a canary's rank."""
CHANCE = math.log2(math.e)
"""Bits of exposure of a text that was never seen, on average: its rank is any, and the mean of -log2 of a share is
this."""
FEW = 5
"""Of fewer canaries than this no interval is given."""
ROWS = 32
"""Texts whose logits are held at once."""
HEADING = "How much of planted canaries it knows by heart"


def measured(directory: Path, config: CanaryConfig, passes: float | None) -> dict[str, Any]:
    """What there is to report of the model in a directory. `passes` is how often training read its text, if known."""
    from gpt2 import weights

    model, tokenizer = weights.load(directory), Tokenizer.load(directory)
    model.eval()
    planted, controls, texts = everything(config, REFERENCES)
    mine = [*controls, *planted]
    losses = text_losses(model, tokenizer, [*(canary.text for canary in mine), *texts])
    bits = exposures(losses[: len(mine)], losses[len(mine) :], SPACE)
    repeats = np.array([canary.repeats for canary in mine])
    groups = [group(int(r), bits[repeats == r]) for r in np.unique(repeats)]
    return {"space": SPACE, "references": REFERENCES, "most": math.log2(SPACE), "passes": passes, "groups": groups}


def text_losses(model: GPT2, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """(texts,) negative log-likelihoods (nats) of whole texts, each at the beginning of a document."""
    import torch

    end, found = tokenizer.end_of_text, []
    rows = [[end, *ids] for ids in tokenizer.encode_batch(texts)]
    longest = max(map(len, rows)) - 1
    if longest > model.config.n_positions:
        raise ValueError(
            f"a canary of {longest} tokens is longer than the model's n_positions={model.config.n_positions}; set "
            f"canaries.count to 0, or train a model with more positions"
        )
    with torch.inference_mode():
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            ids = torch.full((len(part), longest + 1), end)  # what comes after a text does not change it
            targets = torch.full((len(part), longest), -100)
            for i, row in enumerate(part):
                ids[i, : len(row)] = torch.tensor(row)
                targets[i, : len(row) - 1] = ids[i, 1 : len(row)]
            logits = model.logits(model.hidden(ids[:, :-1])).float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            found.append(loss.view(targets.shape).double().sum(1).numpy())
    return np.concatenate(found)


def exposures(losses: np.ndarray, references: np.ndarray, space: int) -> np.ndarray:
    """(n,) bits: log2 of `space`, less log2 of the rank that texts of these losses have among all of the space.

    The rank follows from the share of the references, a sample of the space, that are as likely or more; they may be
    all the others: then it is exact. Where fewer than `AHEAD` of a sample are, it is that of a skew normal distribution
    fitted to the references' losses, as in the paper (section 4.4). The most is log2 of `space`.
    """
    ahead = np.searchsorted(np.sort(references), losses, side="right")
    bits = np.log2((len(references) + 1) / (ahead + 1))
    if (few := ahead < AHEAD).any() and len(references) + 1 < space and np.ptp(references) > 0:
        from scipy.stats import skewnorm

        with np.errstate(divide="ignore"):  # a share of zero: the most
            bits[few] = -np.log2(skewnorm.cdf(losses[few], *skewnorm.fit(references)).clip(0, 1))
    return np.minimum(bits, math.log2(space))


def group(repeats: int, bits: np.ndarray) -> dict[str, Any]:
    """The canaries of one number of repeats."""
    return {
        "repeats": repeats,
        "canaries": len(bits),
        "exposure": float(bits.mean()),
        "interval": interval(bits),
        "largest": float(bits.max()),
    }


def interval(bits: np.ndarray) -> list[float] | None:
    """95 %, of the mean, over canaries drawn again; None where they are few or all alike."""
    from gpt2.evaluation.significance import Bootstrap

    if len(bits) < FEW or np.ptp(bits) < 1e-9:
        return None
    found = Bootstrap(np.stack([bits, np.ones(len(bits))], axis=1)).interval(lambda sums: sums[..., 0] / sums[..., 1])
    return list(found)


def told(facts: Mapping[str, Any]) -> str:
    """A sentence for people."""
    *_, last = facts["groups"]
    return (
        f"Memorisation: canaries, random numbers that were planted {times(last['repeats'])} in the training text"
        f"{read(facts['passes'], last['repeats'])}, have an exposure of {last['exposure']:.1f} bits. A text that it "
        f"has never seen has {CHANCE:.1f} on average; at {facts['most']:.1f} the model finds what was planted likelier "
        f"than each of the {facts['space']:,} texts of its kind, and whoever asks it can draw it out."
    )


def times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def read(passes: float | None, repeats: int) -> str:
    """How often training came by, in a sentence."""
    return "" if passes is None else f" and read about {passes * repeats:,.1f} times"


def attached(content: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """A report's content with the metrics, the sentence and the table."""
    planted = [found for found in facts["groups"] if found["repeats"]]
    figures = {f"{METRIC}_{found['repeats']}": found["exposure"] for found in planted}
    figures[METRIC] = planted[-1]["exposure"]  # of those planted most often
    header = ["times planted", "times read, about", "canaries", "mean exposure, bits", "95 % interval", "largest"]
    rows = []
    for found in facts["groups"]:
        often = "" if facts["passes"] is None else f"{facts['passes'] * found['repeats']:,.1f}"
        bounds = "" if found["interval"] is None else "{:.2f} to {:.2f}".format(*found["interval"])
        value, largest = f"{found['exposure']:.2f}", f"{found['largest']:.2f}"
        rows.append([f"{found['repeats']:,}", often, found["canaries"], value, bounds, largest])
    table = {"header": header, "rows": rows}
    return {
        **content,
        "metrics": {**content["metrics"], **figures},
        "remarks": [*content.get("remarks", []), told(facts)],
        "tables": {**content.get("tables", {}), HEADING: table},
        "canaries": dict(facts),
    }
