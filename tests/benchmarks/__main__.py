"""`make bench`: each benchmark prints one table, peers measured in the same run.

python -m tests.benchmarks [NAME ...], a name being that of a module beside this one with a `run`.
python -m tests.benchmarks [NAME ...], of those listed in BENCHMARKS below.
python -m tests.benchmarks [tokenization] [step] [finetuning] [fewshot] [training] [overhead] [surviving] [recipe]
"""

import importlib
import sys
from pathlib import Path

from cluster.home import configure

configure()

NAMES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if "\ndef run(" in p.read_text())
chosen = sys.argv[1:] or NAMES
unknown = set(chosen) - set(NAMES)
from tests.benchmarks import (  # noqa: E402
    distillation,
    fewshot,
    finetuning,
    generation,
    overhead,
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
    "generation": generation.run,
    "distillation": distillation.run,
    "training": training.run,
    "overhead": overhead.run,
    "surviving": surviving.run,
}
chosen = sys.argv[1:] or list(BENCHMARKS)
unknown = set(chosen) - set(BENCHMARKS)
if unknown:
    sys.exit(f"there is no benchmark {unknown.pop()!r}; there are: {', '.join(NAMES)}")
for name in chosen:
    print(f"\n## {name}\n")
    importlib.import_module(f"tests.benchmarks.{name}").run()
