"""Documents to token shards, against `datasets.map` with a `transformers` fast tokenizer: same text, same BPE.

Ours does more: it validates, normalises, drops duplicates and writes checked shards. Each side runs in processes
of its own with two cores; memory is the largest resident set of any of its processes.
"""

import json
import multiprocessing
import random
import resource
import tempfile
import time
from pathlib import Path

SIZES = (10_000_000, 100_000_000, 300_000_000)


def run(sizes: tuple[int, ...] = SIZES) -> None:
    from cluster.home import samples
    from gpt2.readers import documents
    from gpt2.samples import SAMPLES, resolve
    from gpt2.tokenizer import Tokenizer

    assert SAMPLES
    texts = [d.text for d in documents(resolve("sample:reviews", samples()), "text", 10**7)]
    print("| text, MB | ours, s | tokens/s | memory, MB | datasets.map, s | tokens/s | memory, MB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        Tokenizer.train(texts[:4000], 8192).save(root)
        for size in sizes:
            source, total = write_corpus(texts, size, root)
            ours = in_process(encode_ours, source, root)
            theirs = in_process(encode_theirs, source, root)
            print(
                f"| {total / 1e6:.0f} | {ours[0]:.1f} | {ours[1] / ours[0]:,.0f} | {ours[2]:.0f} | {theirs[0]:.1f} | "
                f"{theirs[1] / theirs[0]:,.0f} | {theirs[2]:.0f} | {ours[1] / ours[0] / (theirs[1] / theirs[0]):.2f} |",
                flush=True,
            )


def write_corpus(texts: list[str], size: int, root: Path) -> tuple[Path, int]:
    """A JSONL file of about `size` bytes: shuffled reviews, each marked so that none is a duplicate."""
    path, total, generator, number = root / f"{size}.jsonl", 0, random.Random(0), 0
    with open(path, "w") as stream:
        while total < size:
            number += 1
            text = f"{number} {generator.choice(texts)}"
            total += stream.write(json.dumps({"text": text}) + "\n")
    return path, total


def in_process(function, source: Path, root: Path) -> tuple[float, int, float]:
    """(seconds, tokens, MB) of a function in a fresh process; its children count."""
    queue = multiprocessing.get_context("spawn").Queue()
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(function, source, root, queue))
    process.start()
    result = queue.get()
    process.join()
    return result


def measure(function, source: Path, root: Path, queue) -> None:
    with tempfile.TemporaryDirectory(dir=root) as work:
        started = time.perf_counter()
        tokens = function(source, root, Path(work))
        seconds = time.perf_counter() - started
        kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    queue.put((seconds, tokens, kilobytes / 1024))


def encode_ours(source: Path, root: Path, work: Path) -> int:
    """Clean, deduplicate, encode: what the flow's workers do, spread over two processes."""
    from concurrent.futures import ProcessPoolExecutor

    from gpt2 import corpus
    from gpt2.config import CorpusConfig

    corpus.clean(str(source), CorpusConfig(), work)
    pieces = sorted(work.glob("*.parquet"))
    kept = corpus.deduplicate(pieces)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [(p, k, root, work / f"out{i}") for i, (p, k) in enumerate(zip(pieces, kept, strict=True))]
        return sum(pool.map(encode_piece, jobs))


def encode_piece(job) -> int:
    from gpt2 import shards
    from gpt2.tokenizer import Tokenizer

    piece, keep, root, out = job
    out.mkdir()
    counts = shards.encode_piece(piece, keep, Tokenizer.load(root), "uint16", 0.02, out)
    return counts["train_tokens"] + counts["validation_tokens"]


def encode_theirs(source: Path, root: Path, work: Path) -> int:
    """The usual recipe: load, map in batches with a fast tokenizer over two processes, keep the ids as Arrow."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(root / "tokenizer.json"), eos_token="<|endoftext|>")
    data = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(work))
    encoded = data.map(
        lambda batch: {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in tokenizer(batch["text"])["input_ids"]]},
        batched=True,
        num_proc=2,
        remove_columns=["text"],
    )
    lengths = encoded.data.column("input_ids")
    return sum(len(chunk.values) for chunk in lengths.chunks)
