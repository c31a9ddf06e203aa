"""Documents to token shards, against `datasets.map` with a `transformers` fast tokenizer: same text, same BPE.

Ours does more: it validates, normalises, drops duplicates and writes checked shards. Each side runs in processes
of its own with two cores; memory is the largest resident set of any of its processes. Imports and the start of
Python processes are not counted on either side: a flow's workers are there already.
"""

import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SIZES = (10_000_000, 100_000_000, 300_000_000)


def run(sizes: tuple[int, ...] = SIZES) -> None:
    from cluster.home import samples
    from gpt2.data.readers import documents
    from gpt2.data.samples import SAMPLES, resolve
    from gpt2.data.tokenizer import Tokenizer

    assert SAMPLES
    texts = [d.text for d in documents(resolve("sample:reviews", samples()), "text", 10**7)]
    print("| text, MB | ours, s | tokens/s | memory, MB | datasets.map, s | tokens/s | memory, MB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        Tokenizer.train(texts[:4000], 8192).save(root)
        for size in sizes:
            source, total = write_corpus(texts, size, root)
            mine = in_process(ours, source, root)
            peer = in_process(theirs, source, root)
            print(
                f"| {total / 1e6:.0f} | {mine[0]:.1f} | {mine[1] / mine[0]:,.0f} | {mine[2]:.0f} | {peer[0]:.1f} | "
                f"{peer[1] / peer[0]:,.0f} | {peer[2]:.0f} | {mine[1] / mine[0] / (peer[1] / peer[0]):.2f} |",
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
    with tempfile.TemporaryDirectory(dir=root) as work, function(source, root, Path(work)) as job:
        started = time.perf_counter()
        tokens = job()
        seconds = time.perf_counter() - started
        kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    queue.put((seconds, tokens, kilobytes / 1024))


@contextmanager
def ours(source: Path, root: Path, work: Path) -> Iterator[Callable[[], int]]:
    """Clean, deduplicate, encode: what the flow's workers do, spread over two processes."""
    from concurrent.futures import ProcessPoolExecutor

    from gpt2.data import corpus
    from gpt2.data.config import CorpusConfig

    def job() -> int:
        corpus.clean(str(source), CorpusConfig(), work)
        pieces = sorted(work.glob("*.parquet"))
        kept = corpus.deduplicate(pieces)
        calls = [(p, k, root, work / f"out{i}") for i, (p, k) in enumerate(zip(pieces, kept, strict=True))]
        return sum(pool.map(encode_piece, calls))

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(ready, range(2)))
        next(iter(corpus.read(str(source), CorpusConfig())))
        yield job


def ready(number: int) -> None:
    """Import what encoding needs, and stay busy until the other process has started too."""
    import gpt2.data.shards

    assert gpt2.data.shards
    time.sleep(2)


def encode_piece(job) -> int:
    from gpt2.data import shards
    from gpt2.data.tokenizer import Tokenizer

    piece, keep, root, out = job
    out.mkdir()
    counts = shards.encode_piece(piece, keep, Tokenizer.load(root), "uint16", 0.02, out)
    return counts["train_tokens"] + counts["validation_tokens"]


@contextmanager
def theirs(source: Path, root: Path, work: Path) -> Iterator[Callable[[], int]]:
    """The usual recipe: load, map in batches with a fast tokenizer over two processes, keep the ids as Arrow."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(root / "tokenizer.json"), eos_token="<|endoftext|>")
    end = tokenizer.eos_token_id

    def job() -> int:
        data = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(work))
        encoded = data.map(
            lambda batch: {"input_ids": [[*ids, end] for ids in tokenizer(batch["text"])["input_ids"]]},
            batched=True,
            num_proc=2,
            remove_columns=["text"],
        )
        return sum(len(chunk.values) for chunk in encoded.data.column("input_ids").chunks)

    yield job
