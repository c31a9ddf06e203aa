"""`make bench`: each benchmark prints one table, peers measured in the same run.

python -m tests.benchmarks [tokenization] [step] [finetuning] [fewshot] [training] [overhead] [surviving] [recipe]
"""

import sys

from cluster.home import configure

configure()

from tests.benchmarks import (  # noqa: E402
    fewshot,
    finetuning,
    overhead,
    recipe,
    step,
    surviving,
    tokenization,
    training,
)

BENCHMARKS = {
    "tokenization": tokenization.run,
    "step": step.run,
    "finetuning": finetuning.run,
    "fewshot": fewshot.run,
    "training": training.run,
    "overhead": overhead.run,
    "surviving": surviving.run,
    "recipe": recipe.run,
}
chosen = sys.argv[1:] or list(BENCHMARKS)
unknown = set(chosen) - set(BENCHMARKS)
if unknown:
    sys.exit(f"there is no benchmark {unknown.pop()!r}; there are: {', '.join(BENCHMARKS)}")
for name in chosen:
    print(f"\n## {name}\n")
    BENCHMARKS[name]()
