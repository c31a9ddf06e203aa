"""What has been found since 2019: the recipe of `laptop-modern` against that of `laptop`, in one process of plain
PyTorch, on the sample reviews in the same order: at half the presets' width in fp32, then at their own in bf16 and for
longer. The modern recipe gets half the tokens; GPT-2's has the optimizer that it was published with, or with half the
tokens the preset's own, Muon. Each has the learning rate that is best for it at that scale; Muon has the preset's. And
what the modern recipe loses without each of its parts."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH = 16
SEEDS = (0, 1, 2)
MUON = "laptop with Muon"
PUBLISHED = {"kind": "adamw", "warmup_steps": 20, "schedule": "cosine", "final_ratio": 0.05}
FIGURES = Path(__file__).parents[2] / "notebooks" / "figures"


@dataclass(frozen=True)
class Scale:
    """Of a model and its training."""

    steps: int
    context: int
    width: int
    vocabulary: int
    precision: str
    threads: int
    rates: dict[str, float]
    """Learning rates by preset."""


# Rates: the best of four and of three on one seed at half the width, of three each at the whole (BENCHMARKS.md).
HALF = Scale(120, 64, 128, 1024, "fp32", 1, {"laptop": 1e-3, "laptop-modern": 1e-2})
WHOLE = Scale(300, 256, 256, 8192, "bf16", 2, {"laptop": 2e-3, "laptop-modern": 5e-3})


def run() -> None:
    runs = compare(HALF)
    draw(runs, HALF, "recipe")
    ablate(HALF, runs["laptop-modern"])
    draw(compare(WHOLE), WHOLE, "recipe_whole")


def compare(scale: Scale) -> dict[str, list[Any]]:
    """Print both recipes' losses; the trials."""
    from flows.config import resolve

    text = reviews(scale)
    runs = {
        name: [train(name, text, seed, scale, steps) for seed in SEEDS]
        for name, steps in (("laptop", scale.steps), ("laptop-modern", scale.steps // 2))
    }
    own = resolve("laptop").pretrain.optimizer.model_dump()
    runs[MUON] = [train("laptop", text, seed, scale, scale.steps // 2, optimizer=own) for seed in SEEDS]
    print(
        f"\n4 x {scale.width}, V={scale.vocabulary:,}, T={scale.context}, B={BATCH}, {scale.precision}, "
        f"{scale.threads} threads; {len(SEEDS)} seeds\n"
    )
    print("| recipe | parameters | steps | tokens | processor time, s | validation loss, mean | of each seed |")
    print("|---|---|---|---|---|---|---|")
    for name, each in runs.items():
        steps, losses = len(each[0].losses), [t.validation_loss for t in each]
        parameters = each[0].model.config.n_parameters
        print(
            f"| {name} | {parameters:,} | {steps} | {steps * BATCH * scale.context:,} | {steps * pace(each):.0f} "
            f"| **{statistics.mean(losses):.3f}** | {', '.join(f'{loss:.3f}' for loss in losses)} |"
        )
    slower = pace(runs["laptop-modern"]) / pace(runs["laptop"])
    print(f"\nA modern step takes {slower:.2f} times the processor time of the other's.")
    return runs


def ablate(scale: Scale, whole: list[Any]) -> None:
    """Print what the modern recipe, of which `whole` are the trials, loses without each of its parts."""
    from flows.config import resolve
    from gpt2.model.config import SWITCHES, ModelShape

    text, modern = reviews(scale), resolve("laptop-modern").model
    switches = {*SWITCHES, "zero_init"}
    parts = {
        f"{name}: {getattr(modern, name)}": {name: value}
        for name, value in ModelShape()
        if name in switches and getattr(modern, name) != value
    }
    steps = scale.steps // 2
    rows = {
        name: [train("laptop-modern", text, seed, scale, steps, model=change) for seed in SEEDS]
        for name, change in parts.items()
    }
    adamw = {**PUBLISHED, "learning_rate": scale.rates["laptop"]}
    rows["AdamW and its cosine"] = [train("laptop-modern", text, s, scale, steps, optimizer=adamw) for s in SEEDS]
    cosine = {"schedule": "cosine"}
    rows["cosine"] = [train("laptop-modern", text, s, scale, steps, optimizer=cosine) for s in SEEDS]
    print("\n| without | validation loss, mean | more than with it, of each seed | time of a step |")
    print("|---|---|---|---|")
    for name, each in rows.items():
        more = [t.validation_loss - w.validation_loss for t, w in zip(each, whole, strict=True)]
        mean = statistics.mean(t.validation_loss for t in each)
        print(f"| {name} | {mean:.3f} | {', '.join(f'{m:+.3f}' for m in more)} | {pace(each) / pace(whole):.2f} |")


def reviews(scale: Scale) -> Any:
    import torch

    from cluster.home import samples
    from gpt2.analysis.small_runs import reviews

    torch.set_num_threads(scale.threads)
    return reviews(samples(), scale.vocabulary, scale.context)


def train(
    preset: str, text: Any, seed: int, scale: Scale, steps: int,
    model: dict[str, Any] | None = None, optimizer: dict[str, Any] | None = None,
) -> Any:  # fmt: skip
    """The preset's model and optimizer at this scale, with changes to them."""
    from flows.config import resolve
    from gpt2.analysis.small_runs import trial
    from gpt2.model.config import ModelConfig
    from gpt2.training.config import TrainConfig

    config = resolve(preset)
    own = config.pretrain.optimizer.model_dump() if config.model.beyond_gpt2() else PUBLISHED
    size = {"n_embd": scale.width, "n_positions": scale.context, "vocab_size": scale.vocabulary}
    settings = {
        "steps": steps, "epochs": 10, "batch_size": BATCH, "micro_batch_size": BATCH, "context": scale.context,
        "precision": scale.precision, "eval_every": 15, "eval_samples": 64, "seed": seed,
        "optimizer": {**own, "learning_rate": scale.rates[preset], **(optimizer or {})},
    }  # fmt: skip
    done = trial(ModelConfig(**{**config.model.model_dump(), **size, **(model or {})}), text, TrainConfig(**settings))
    print(
        f"{preset} {model or ''} {optimizer or ''}, seed {seed}, {steps} steps: {done.validation_loss:.4f}", flush=True
    )
    return done


def pace(trials: list[Any]) -> float:
    """Processor seconds of a step."""
    return statistics.median(second for each in trials for second in each.seconds)


def draw(runs: dict[str, list[Any]], scale: Scale, name: str) -> None:
    """Validation loss against tokens and against time, the mean over seeds, as NAME.png."""
    from gpt2.evaluation.plots import ACCENT, INK, PALE, blank

    title = "The modern recipe is far ahead after half the tokens, and in less time"
    figure, axes = blank(title, 9, 3.4, 2, sharey=True)
    for recipe, colour in (("laptop", INK), ("laptop-modern", ACCENT)):
        each = runs[recipe]
        steps = [step for step, _ in each[0].validation]
        means = [statistics.mean(losses) for losses in zip(*([v for _, v in t.validation] for t in each), strict=True)]
        for panel, unit in zip(axes, (BATCH * scale.context / 1000, pace(each)), strict=True):
            panel.plot([step * unit for step in steps], means, color=colour, label=recipe, marker="o", markersize=3)
            if recipe == "laptop":
                panel.axhline(means[-1], color=PALE, linewidth=1, zorder=0)
    axes[0].set(xlabel="tokens (thousands)", ylabel="validation loss (nats per token)")
    axes[1].set(xlabel="processor time (s)")
    axes[0].legend(frameon=False)
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=110, metadata={"Software": None})
