"""Memorisation of planted canaries, measured as exposure (Carlini et al. 2019)."""

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
"""Number of texts of the space, never planted, among which a canary is ranked. For skew normal losses this number
estimates an exposure of 14 to 26 bits to 7 % or better (standard deviation over 30 samples, for each of three
skews)."""
AHEAD = 10
"""Fewest references ahead of a canary for which its rank in the sample is reliable."""
CHANCE = math.log2(math.e)
"""Mean exposure (bits) of a text that was never seen: the mean of -log2 of a uniform share."""
FEW = 5
"""Fewest canaries for an interval."""
ROWS = 32
"""Number of texts whose logits are held at once."""
HEADING = "Memorisation of planted canaries"


def measured(directory: Path, config: CanaryConfig, passes: float | None) -> dict[str, Any]:
    """Return the exposure figures of the model in a directory.

    `passes` is the number of times that training read its text, if known.
    """
    from gpt2 import weights
    from gpt2.model.hardware import ready

    model, tokenizer = ready(weights.load(directory)), Tokenizer.load(directory)
    planted, controls, texts = everything(config, REFERENCES)
    mine = [*controls, *planted]
    losses = text_losses(model, tokenizer, [*(canary.text for canary in mine), *texts])
    bits = exposures(losses[: len(mine)], losses[len(mine) :], SPACE)
    repeats = np.array([canary.repeats for canary in mine])
    groups = [group(int(r), bits[repeats == r]) for r in np.unique(repeats)]
    return {"space": SPACE, "references": REFERENCES, "most": math.log2(SPACE), "passes": passes, "groups": groups}


def text_losses(model: GPT2, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Return (texts,) negative log-likelihoods (nats) of whole texts, each at the beginning of a document."""
    import torch

    from gpt2.model.hardware import at_once, device_of

    end, losses = tokenizer.end_of_text, []
    rows = [[end, *ids] for ids in tokenizer.encode_batch(texts)]
    longest = max(map(len, rows)) - 1
    if longest > model.config.n_positions:
        raise ValueError(
            f"a canary of {longest} tokens is longer than the model's n_positions={model.config.n_positions}; set "
            f"canaries.count to 0, or train a model with more positions"
        )
    with torch.inference_mode():
        step, device = at_once(model, ROWS), device_of(model)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            ids = torch.full((len(part), longest + 1), end)  # the model is causal: padding changes nothing
            targets = torch.full((len(part), longest), -100)
            for i, row in enumerate(part):
                ids[i, : len(row)] = torch.tensor(row)
                targets[i, : len(row) - 1] = ids[i, 1 : len(row)]
            ids, targets = ids.to(device), targets.to(device)
            logits = model.logits(model.hidden(ids[:, :-1])).float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            losses.append(loss.view(targets.shape).double().sum(1).cpu().numpy())
    return np.concatenate(losses)


def exposures(losses: np.ndarray, references: np.ndarray, space: int) -> np.ndarray:
    """Return the (n,) exposures (bits): log2 of `space` minus log2 of each text's rank by loss among the whole space.

    The rank is estimated by the share of references, a sample of the space, that are at least as likely. It is exact if
    they are all other texts. With fewer than `AHEAD` such references it comes from a skew normal distribution fitted to
    the references' losses, as in the paper (section 4.4). The maximum is log2 of `space`.
    """
    ahead = np.searchsorted(np.sort(references), losses, side="right")
    bits = np.log2((len(references) + 1) / (ahead + 1))
    if (few := ahead < AHEAD).any() and len(references) + 1 < space and np.ptp(references) > 0:
        from scipy.stats import skewnorm

        with np.errstate(divide="ignore"):  # a share of zero gives the maximum
            bits[few] = -np.log2(skewnorm.cdf(losses[few], *skewnorm.fit(references)).clip(0, 1))
    return np.minimum(bits, math.log2(space))


def group(repeats: int, bits: np.ndarray) -> dict[str, Any]:
    """Return the figures of the canaries with one number of repeats."""
    return {
        "repeats": repeats,
        "canaries": len(bits),
        "exposure": float(bits.mean()),
        "interval": interval(bits),
        "largest": float(bits.max()),
    }


def interval(bits: np.ndarray) -> list[float] | None:
    """Return the 95 % bootstrap interval of the mean over canaries; None if they are few or all equal."""
    from gpt2.evaluation.significance import Bootstrap

    if len(bits) < FEW or np.ptp(bits) < 1e-9:
        return None
    drawn = Bootstrap(np.stack([bits, np.ones(len(bits))], axis=1))
    return list(drawn.interval(lambda sums: sums[..., 0] / sums[..., 1]))


def as_sentences(facts: Mapping[str, Any]) -> str:
    """Return the exposure figures as sentences."""
    *_, last = facts["groups"]
    return (
        f"Memorisation: canaries, random numbers that were planted {times(last['repeats'])} in the training text"
        f"{read(facts['passes'], last['repeats'])}, have an exposure of {last['exposure']:.1f} bits. An unseen text "
        f"has {CHANCE:.1f} bits on average. At {facts['most']:.1f} bits a canary is likelier to the model than each of "
        f"the {facts['space']:,} texts of its kind, so users can extract it."
    )


def times(count: int) -> str:
    """Return a count in words."""
    return "once" if count == 1 else f"{count:,} times"


def read(passes: float | None, repeats: int) -> str:
    """Return the clause on how often training read a canary; empty if it is not known."""
    return "" if passes is None else f" and read about {passes * repeats:,.1f} times"


def attached(content: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report's content with the exposure metrics, a remark and a table added."""
    planted = [group for group in facts["groups"] if group["repeats"]]
    figures = {f"{METRIC}_{group['repeats']}": group["exposure"] for group in planted}
    figures[METRIC] = planted[-1]["exposure"]  # of those planted most often
    header = ["times planted", "times read, about", "canaries", "mean exposure, bits", "95 % interval", "largest"]
    rows = []
    for group in facts["groups"]:
        often = "" if facts["passes"] is None else f"{facts['passes'] * group['repeats']:,.1f}"
        bounds = "" if group["interval"] is None else "{:.2f} to {:.2f}".format(*group["interval"])
        value, largest = f"{group['exposure']:.2f}", f"{group['largest']:.2f}"
        rows.append([f"{group['repeats']:,}", often, group["canaries"], value, bounds, largest])
    table = {"header": header, "rows": rows}
    return {
        **content,
        "metrics": {**content["metrics"], **figures},
        "remarks": [*content.get("remarks", []), as_sentences(facts)],
        "tables": {**content.get("tables", {}), HEADING: table},
        "canaries": dict(facts),
    }
