"""Whether a refresh forgets: bits per byte of held-out film reviews (old) and reviews of clothes (new), of a model that
has learned the old ones alone, of its refreshes with more and less replay, and of one that learns all text anew."""

import math
import tempfile
from pathlib import Path

import numpy as np

OLD_CHARS, NEW_CHARS, VALIDATION_SHARE, VOCABULARY = 1_400_000, 450_000, 0.05, 1024
SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 96, "n_positions": 64, "vocab_size": VOCABULARY}
SHARES = (0.0, 0.25, 0.5)
SPLITS = ("train", "validation")


def run() -> None:
    import torch

    from gpt2.training.config import RefreshConfig

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = Data(Path(folder))
        print(f"2 layers x 96, T=64, V={VOCABULARY}, fp32, seed 0, one thread; {data.told}\n")
        print("| model | old text, bits per byte | new text, bits per byte | tokens read for it |")
        print("|---|---|---|---|")
        tell("learned the old text alone", data.train("before", data.files(["old"]), data.settings()))
        for share in SHARES:
            refresh, files = RefreshConfig(replay_share=share), data.files(["old", "new"], replayed=1)
            settings = refresh.training(data.settings(), data.samples("new"))
            base = Path(folder) / "before" / "model"
            tell(f"refreshed, replay_share={share:g}", data.train(f"replay-{share}", files, settings, base))
        tell("learned all text anew", data.train("anew", data.files(["old", "new"]), data.settings()))


def tell(name: str, result: tuple[float, float, int]) -> None:
    old, new, tokens = result
    print(f"| {name} | {old:.3f} | {new:.3f} | {tokens:,} |", flush=True)


class Data:
    """Both texts as shards, with one tokenizer, that of the old text."""

    def __init__(self, root: Path):
        from gpt2.data.splits import content_digest, is_validation
        from gpt2.data.tokenizer import Tokenizer

        self.root, self.bytes, counts = root, {}, {}
        texts = {name: list(some(documents, limit)) for name, documents, limit in sources()}
        marks = {n: [is_validation(content_digest(t), VALIDATION_SHARE) for t in texts[n]] for n in texts}
        learned = [t for t, held_out in zip(texts["old"], marks["old"], strict=True) if not held_out]
        tokenizer = Tokenizer.train(learned, VOCABULARY)
        tokenizer.save(root / "tokenizer")
        for name in texts:
            for split in SPLITS:
                chosen = [t for t, m in zip(texts[name], marks[name], strict=True) if m == (split == "validation")]
                ids = [np.append(tokenizer.encode_array(t), tokenizer.end_of_text) for t in chosen]
                np.concatenate(ids).astype("<u2").tofile(root / f"{name}-{split}.bin")
                self.bytes[name, split] = sum(len(t.encode()) for t in chosen)
                counts[name, split] = sum(map(len, ids))
        self.counts = counts
        self.told = "; ".join(
            f"{n}: {counts[n, 'train']:,} tokens to learn, {counts[n, 'validation']:,} held out" for n in texts
        )

    def files(self, names: list[str], replayed: int = 0):
        from gpt2.training_job import TokenFiles

        splits = {split: [str(self.root / f"{name}-{split}.bin") for name in names] for split in SPLITS}
        return TokenFiles(**splits, dtype="uint16", replayed=replayed)

    def settings(self):
        from gpt2.training.config import TrainConfig

        optimizer = {"learning_rate": 3e-3, "warmup_steps": 20, "final_ratio": 0.05}
        values = {
            "epochs": 1, "batch_size": 32, "micro_batch_size": 32, "context": SHAPE["n_positions"], "precision": "fp32",
            "optimizer": optimizer, "eval_every": 10_000, "eval_samples": 16, "checkpoint_every": 10_000,
        }  # fmt: skip
        return TrainConfig.model_validate(values)

    def samples(self, name: str) -> int:
        return (self.counts[name, "train"] - 1) // SHAPE["n_positions"]

    def train(self, name: str, files, settings, base: Path | None = None) -> tuple[float, float, int]:
        """(bits per byte of the old and of the new held-out text, tokens read) of a training."""
        from gpt2.training.engine import TorchEngine
        from gpt2.training.loop import fit
        from gpt2.training_job import TrainingJob, build

        out = self.root / name
        out.mkdir()
        job = TrainingJob(
            name="base", train=settings, tokenizer=str(self.root / "tokenizer"), output=str(out), model=SHAPE,
            tokens=files, base=str(base) if base else None,
        )  # fmt: skip
        parts = build(job)
        fit(TorchEngine(parts.module, settings, "cpu"), parts.training, parts.validation, settings, out)
        parts.save(out / "model")
        tokens = settings.total_steps(len(parts.training)) * settings.batch_size * settings.context
        return self.bits_per_byte(parts.gpt2, "old"), self.bits_per_byte(parts.gpt2, "new"), tokens

    def bits_per_byte(self, model, name: str) -> float:
        from gpt2.tasks.base.report import token_losses
        from gpt2.training_job import token_dataset

        data = token_dataset(self.files([name]), "validation", SHAPE["n_positions"])
        model.eval()
        losses = token_losses(model, data)
        return (
            losses.sum()
            / math.log(2)
            / (len(losses) * self.bytes[name, "validation"] / self.counts[name, "validation"])
        )


def sources():
    """(name, documents, characters of it to take)."""
    import pandas as pd

    from cluster.home import samples
    from gpt2.data.samples import resolve

    films = pd.read_csv(resolve("sample:reviews", samples()))["text"]
    clothes = pd.read_parquet(resolve("sample:clothing", samples()))["Review Text"].dropna()
    return (("old", films, OLD_CHARS), ("new", clothes, NEW_CHARS))


def some(documents, limit: int):
    """Documents up to so many characters, in an order that follows from the seed."""
    from gpt2.data.corpus import normalise

    taken = 0
    for text in documents.sample(frac=1, random_state=0).drop_duplicates():
        if taken >= limit:
            return
        taken += len(text)
        yield normalise(text)
