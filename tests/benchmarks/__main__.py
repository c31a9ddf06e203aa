"""`make bench`: each benchmark prints one table, peers measured in the same run.

python -m tests.benchmarks [NAME ...], a name being that of a module beside this one with a `run`.
"""

import importlib
import sys
from pathlib import Path

from cluster.process_env import configure

configure()

NAMES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if "\ndef run(" in p.read_text())
chosen = sys.argv[1:] or NAMES
unknown = set(chosen) - set(NAMES)
if unknown:
    sys.exit(f"there is no benchmark {unknown.pop()!r}; there are: {', '.join(NAMES)}")
for name in chosen:
    print(f"\n## {name}\n")
    importlib.import_module(f"tests.benchmarks.{name}").run()
