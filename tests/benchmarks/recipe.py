"""What has been found since 2019: the recipe of `laptop-modern` against that of `laptop`, in one process of plain
PyTorch, fp32, one thread, on the sample reviews in the same order, at half the width that the presets have. The modern
recipe gets half the tokens; GPT-2's has the optimizer that it was published with. Each has the learning rate that is
best for it here."""

import statistics
from pathlib import Path
from typing import Any

STEPS, BATCH, CONTEXT, WIDTH, VOCABULARY = 120, 16, 64, 128, 1024
SEEDS = (0, 1, 2)
RATES = {"laptop": 1e-3, "laptop-modern": 1e-2}
"""The best of four and of three on one seed; see BENCHMARKS.md."""
PUBLISHED = {"kind": "adamw", "warmup_steps": 20, "schedule": "cosine", "final_ratio": 0.05}
FIGURE = Path(__file__).parents[2] / "notebooks" / "figures" / "recipe.png"


def run() -> None:
    import torch

    from cluster.home import samples
    from gpt2.trials import reviews

    torch.set_num_threads(1)
    text = reviews(samples(), VOCABULARY, CONTEXT)
    plain = [train("laptop", text, seed, STEPS) for seed in SEEDS]
    half = [train("laptop-modern", text, seed, STEPS // 2) for seed in SEEDS]
    runs = {"laptop": plain, "laptop-modern": half}
    print(f"\n4 x {WIDTH}, V={VOCABULARY:,}, T={CONTEXT}, B={BATCH}, fp32, 1 thread; {len(SEEDS)} seeds\n")
    print("| recipe | parameters | steps | tokens | processor time, s | validation loss, mean | of each seed |")
    print("|---|---|---|---|---|---|---|")
    for name, each in runs.items():
        steps, losses = len(each[0].losses), [t.validation_loss for t in each]
        parameters = each[0].model.config.n_parameters
        print(
            f"| {name} | {parameters:,} | {steps} | {steps * BATCH * CONTEXT:,} | {steps * pace(each):.0f} "
            f"| **{statistics.mean(losses):.3f}** | {', '.join(f'{loss:.3f}' for loss in losses)} |"
        )
    print(f"\nA modern step takes {pace(half) / pace(plain):.2f} times the processor time of the other's.")
    draw(runs)


def train(preset: str, text: Any, seed: int, steps: int) -> Any:
    """The preset's model and optimizer at this benchmark's size."""
    from flows.config import resolve
    from gpt2.config import ModelConfig, TrainConfig
    from gpt2.trials import trial

    config = resolve(preset)
    optimizer = config.pretrain.optimizer.model_dump() if config.model.beyond_gpt2() else PUBLISHED
    size = {"n_embd": WIDTH, "n_positions": CONTEXT, "vocab_size": VOCABULARY}
    settings = {
        "steps": steps, "epochs": 10, "batch_size": BATCH, "micro_batch_size": BATCH, "context": CONTEXT,
        "precision": "fp32", "eval_every": 15, "eval_samples": 64, "seed": seed,
        "optimizer": {**optimizer, "learning_rate": RATES[preset]},
    }  # fmt: skip
    done = trial(ModelConfig(**{**config.model.model_dump(), **size}), text, TrainConfig(**settings))
    print(f"{preset}, seed {seed}, {steps} steps: {done.validation_loss:.4f}", flush=True)
    return done


def pace(trials: list[Any]) -> float:
    """Processor seconds of a step."""
    return statistics.median(second for each in trials for second in each.seconds)


def draw(runs: dict[str, list[Any]]) -> None:
    """Validation loss against tokens and against time, the mean over seeds."""
    from gpt2.figures import ACCENT, INK, PALE, blank

    title = "The modern recipe is far ahead after half the tokens, and in less time"
    figure, axes = blank(title, 9, 3.4, 2, sharey=True)
    for (name, each), colour in zip(runs.items(), (INK, ACCENT), strict=True):
        steps = [step for step, _ in each[0].validation]
        means = [statistics.mean(losses) for losses in zip(*([v for _, v in t.validation] for t in each), strict=True)]
        for panel, unit in zip(axes, (BATCH * CONTEXT / 1000, pace(each)), strict=True):
            panel.plot([step * unit for step in steps], means, color=colour, label=name, marker="o", markersize=3)
            if name == "laptop":
                panel.axhline(means[-1], color=PALE, linewidth=1, zorder=0)
    axes[0].set(xlabel="tokens (thousands)", ylabel="validation loss (nats per token)")
    axes[1].set(xlabel="processor time (s)")
    axes[0].legend(frameon=False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110, metadata={"Software": None})
