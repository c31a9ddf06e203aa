"""`make bench`: each benchmark prints one table, peers measured in the same run.

python -m tests.benchmarks [tokenization] [step] [finetuning] [training] [overhead] [surviving] [refresh]
python -m tests.benchmarks [tokenization] [step] [finetuning] [fewshot] [generation] [training] [overhead] [surviving]
python -m tests.benchmarks [tokenization] [step] [finetuning] [training] [overhead] [surviving] [recipe]
python -m tests.benchmarks [tokenization] [step] [finetuning] [fewshot] [training] [overhead] [surviving]
"""

import sys

from cluster.home import configure

configure()

from tests.benchmarks import finetuning, overhead, refresh, step, surviving, tokenization, training  # noqa: E402
from tests.benchmarks import fewshot, finetuning, generation, overhead, step, surviving, tokenization, training  # noqa: E402
from tests.benchmarks import finetuning, overhead, recipe, step, surviving, tokenization, training  # noqa: E402
from tests.benchmarks import fewshot, finetuning, overhead, step, surviving, tokenization, training  # noqa: E402

BENCHMARKS = {
    "tokenization": tokenization.run,
    "step": step.run,
    "finetuning": finetuning.run,
    "fewshot": fewshot.run,
    "generation": generation.run,
    "training": training.run,
    "overhead": overhead.run,
    "surviving": surviving.run,
    "refresh": refresh.run,
    "recipe": recipe.run,
}
chosen = sys.argv[1:] or list(BENCHMARKS)
unknown = set(chosen) - set(BENCHMARKS)
if unknown:
    sys.exit(f"there is no benchmark {unknown.pop()!r}; there are: {', '.join(BENCHMARKS)}")
for name in chosen:
    print(f"\n## {name}\n")
    BENCHMARKS[name]()
