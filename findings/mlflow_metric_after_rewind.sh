#!/usr/bin/env bash
# MLflow: after a training went back to an earlier checkpoint, the run still shows the metrics of the steps it gave up.
#
# Guess:    `run.data.metrics`, and what `search_runs` filters and orders by, is the value that was logged last.
# Happens:  it is the value of the highest step, however old. A run that reached step 1000, was set back to step 500 and
#           then got worse is still found by, and shown with, its old value of step 1000.
# Matters:  who sets a training back after a loss spike, or resumes it from an older checkpoint, gets the best run chosen
#           by numbers of weights that no longer exist, and for good if the new branch ends at a lower step.
# Instead:  give each attempt a run of its own (a child run), or log what a gate reads without a step at the end, under
#           a name of its own; to see the present value, sort `get_metric_history` by timestamp.
#
# Seen (mlflow-skinny 3.17.2, SQLite store): logged last 4.0 at step 800; shown 2.0, of step 1000; the best run by
# search is the one set back, at 2.0, before the one that really is at 3.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet mlflow-skinny==3.17.2 sqlalchemy==2.1.9 alembic==1.20.1 numpy==2.4.6 pandas==3.1.1 \
    2>"$work/pip.log" || { cat "$work/pip.log"; exit 1; }
cd "$work"
export MLFLOW_DISABLE_TELEMETRY=true
cat >try.py <<'PY'
import logging
import os
from importlib.metadata import version

logging.disable(logging.INFO)
from mlflow import MlflowClient

client = MlflowClient(f"sqlite:///{os.getcwd()}/runs.db")
experiment = client.create_experiment("rewind", artifact_location=os.getcwd())


def run(name, values, clock=0):
    """A run with these (step, loss), logged in this order, a second apart."""
    run_id = client.create_run(experiment, run_name=name).info.run_id
    for step, loss in values:
        clock += 1000
        client.log_metric(run_id, "loss", loss, step=step, timestamp=clock)
    return run_id


steady = run("steady", [(500, 3.5), (1000, 3.0)])
rewound = run("set back", [(500, 3.5), (1000, 2.0), (600, 3.8), (800, 4.0)])

last = max(client.get_metric_history(rewound, "loss"), key=lambda entry: entry.timestamp)
shown = client.get_run(rewound).data.metrics["loss"]
found = client.search_runs([experiment], order_by=["metrics.loss ASC"])
below = client.search_runs([experiment], "metrics.loss < 2.5")

print("versions:  mlflow-skinny", version("mlflow-skinny"), "sqlalchemy", version("sqlalchemy"))
print("guess:     the metric of a run is what was logged last")
print("behaviour: it is what was logged at the highest step, even where the run went back since")
print("seen:      logged last", last.value, "at step", last.step, "- shown", shown)
print("           best first:", [(entry.info.run_name, entry.data.metrics["loss"]) for entry in found])
print("           loss < 2.5:", [entry.info.run_name for entry in below])
assert (last.step, last.value, shown) == (800, 4.0, 2.0), "changed: the value shown"
assert [entry.info.run_id for entry in found] == [rewound, steady], "changed: the order"
assert [entry.info.run_id for entry in below] == [rewound], "changed: the filter"
PY
"$work/venv/bin/python" try.py
