"""Small models in the registry, made up."""

from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from gpt2 import weights
from gpt2.data.tokenizer import Tokenizer
from gpt2.model.config import ModelConfig
from gpt2.model.heads import Classifier
from gpt2.model.transformer import GPT2
from gpt2.store import model_files
from gpt2.tasks.recommendation.dataset import Recommender, log_popularity
from gpt2.tasks.recommendation.dataset import texts as texts_of

LABELS = ["negative", "positive"]
TEXTS = ("The crew was lovely and we landed early", "My bag is lost again")


def model_folder(path: Path, task: str = "sentiment", seed: int = 0) -> Path:
    """A directory of the model that a task saves, with random weights, in `path/model`."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train(TEXTS * 20, 270)
    module = Classifier(GPT2(ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=270)), len(LABELS))
    out = path / "model"
    weights.save(module.model, out)
    tokenizer.save(out)
    if task == "sentiment":
        save_file({n: p.contiguous() for n, p in module.head.state_dict().items()}, out / "head.safetensors")
    model_files.write_task(out, task, labels=LABELS)
    return out


def recommender_folder(path: Path) -> list[str]:
    """Write a recommender of random weights to `path/model`; return the titles of its catalogue."""
    out, titles = model_folder(path, "recommendation"), [f"Film {i}" for i in range(8)]
    rows = [{"item": str(i), "title": t, "text": "the crew was lovely", "popularity": i} for i, t in enumerate(titles)]
    items = pd.DataFrame(rows)
    items.to_json(out / "items.jsonl", orient="records", lines=True)
    tokenizer = Tokenizer.load(out)
    module = Recommender(weights.load(out), texts_of(items, tokenizer, 16), log_popularity(items))
    head = {n: p.contiguous() for n, p in module.state_dict().items() if not n.startswith("model.")}
    save_file(head, out / "head.safetensors")
    model_files.write_task(out, "recommendation", context=8, item_tokens=16)
    return titles


def registered(name: str, path: Path, task: str = "sentiment", seed: int = 0, tags=None, texts=None):
    """A version of `name` with random weights, registered as the pipeline does it; its model lies in `path/model`."""
    model_folder(path, task, seed)
    return register(name, path, task, seed, tags, texts)


def register(name: str, path: Path, task: str = "sentiment", seed: int = 0, tags=None, texts=None, params=None):
    """A version of `name` of the model that lies in `path/model`."""
    from cluster.registry import versions
    from cluster.tracking.runs import Run
    from gpt2.loading import read
    from gpt2.store.artifact import Artifact

    _, predictor = read(path / "model")
    artifact = Artifact(path, {"id": f"{name}-{seed}", "kind": task})
    run = Run.open(f"register-{name}", {"gpt2.test": f"{name}-{seed}"})
    example = list(predictor.input_example)
    return versions.register(
        name, artifact, run, tags or {}, example, params or {}, predictor.predict(example, {}), texts
    )
