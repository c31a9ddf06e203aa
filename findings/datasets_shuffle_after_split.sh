#!/usr/bin/env bash
# datasets: a shuffle asked for after the split by worker is done before it, so workers with seeds of their own share rows.
#
# Guess:    `split_dataset_by_node(stream, rank, world).shuffle(seed=rank)` gives each worker its part and shuffles within it.
# Happens:  where the number of shards is a multiple of the workers, that is so. Where it is not, each worker reads the
#           whole stream, shuffles it by its own seed, and then takes every world-th row: the parts overlap, and other
#           rows are in no part. Each part has the right length, and nothing is said.
# Matters:  the code is right on 2 or 4 workers and wrong on 3, so an elastic training that loses a worker begins to
#           train on some texts several times an epoch and on many never; a spread-out evaluation counts wrong rows.
# Instead:  the same seed on all workers (`set_epoch` for another order), or as many shards as a multiple of every world
#           size; test that the parts of an epoch add up to the whole.
#
# Seen (datasets 5.2.0), 8 shards of 100 rows: 2 workers, own seeds: 0 rows missing. 3 workers, own seeds: 237 rows missing,
# 187 read twice, 25 three times. 3 workers, one seed: 0 missing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 1; }
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/hf"
cat >try.py <<'PY'
from collections import Counter
from importlib.metadata import version

from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

SHARDS, ROWS = 8, 100


def rows(shards):
    for shard in shards:
        for row in range(ROWS):
            yield {"row": shard * ROWS + row}


def epoch(world, seeds):
    """How often each row is read, and how many rows each worker reads."""
    parts = []
    for rank in range(world):
        stream = IterableDataset.from_generator(rows, gen_kwargs={"shards": list(range(SHARDS))})
        part = split_dataset_by_node(stream, rank=rank, world_size=world).shuffle(seed=seeds[rank], buffer_size=50)
        parts.append([example["row"] for example in part])
    return Counter(row for part in parts for row in part), [len(part) for part in parts]


print("versions:  datasets", version("datasets"), "pyarrow", version("pyarrow"))
print("guess:     split, then shuffle: each worker shuffles its own part")
print("behaviour: on 3 workers of 8 shards the parts overlap, and many rows are in none")
missing = {}
for world, seeds, kind in ((2, (0, 1), "own seeds"), (3, (0, 1, 2), "own seeds"), (3, (0, 0, 0), "one seed")):
    read, lengths = epoch(world, seeds)
    missing[world, kind] = SHARDS * ROWS - len(read)
    times = Counter(read.values())
    print(f"seen:      {world} workers, {kind}: lengths {lengths}, missing {missing[world, kind]},", end=" ")
    print(f"read twice {times[2]}, three times {times[3]}")
    assert sum(lengths) == SHARDS * ROWS, "changed: the lengths"
assert missing[2, "own seeds"] == missing[3, "one seed"] == 0, "changed: where it was right"
assert missing[3, "own seeds"] > 100, "changed: the parts no longer overlap"
PY
"$work/venv/bin/python" try.py
