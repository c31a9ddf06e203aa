#!/usr/bin/env bash
# Prefect: a task with a set among its inputs is cached within a process, and never across processes.
#
# Guess:    `cache_policy=INPUTS` makes the key of the value of the inputs, so equal sets have equal keys.
# Happens:  the set is written out in the order of its hashes, and Python gives strings other hashes in every process. The
#           key is right inside one process, so a test that calls the task twice passes; the next scheduled run has another
#           key, computes again, and stores one more result. A list, tuple or dictionary has the same key everywhere.
# Matters:  a set of labels, sources or stop words is a natural input of a stage. Its tokenization or training is done
#           anew at each run, nothing says so, and the store of results grows.
# Instead:  pass `sorted(...)`, also inside models and dictionaries, or give a `cache_key_fn` of your own; test the cache
#           with two processes.
#
# Seen (prefect 3.8.8): set: Completed, Cached in the first process, Completed, Cached in the second. List: Completed,
# Cached, then Cached, Cached.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet prefect==3.8.8 sqlalchemy==2.0.58 fastapi==0.150.0 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 1; }
cd "$work"
export PREFECT_HOME="$work/home" PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=180 PREFECT_LOGGING_LEVEL=ERROR
export PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=true NO_PROXY=127.0.0.1,localhost
unset PREFECT_API_URL PREFECT_PROFILE
cat >try.py <<'PY'
from prefect import flow, task
from prefect.cache_policies import INPUTS


@task(cache_policy=INPUTS, persist_result=True)
def prepare(labels):
    return len(labels)


@flow
def prepare_twice():
    for labels in (LABELS, sorted(LABELS)):
        states = [prepare(labels, return_state=True).name for _ in range(2)]
        print(type(labels).__name__, *states, flush=True)


LABELS = {"negative", "neutral", "positive", "mixed", "question", "advert", "spam", "other"}
prepare_twice()
PY
# Any two processes do; the seeds only make this script the same each time.
for process in 1 2; do
    PYTHONHASHSEED=$process "$work/venv/bin/python" try.py >"seen.$process" 2>"log.$process" ||
        { cat "log.$process"; exit 1; }
done
echo "versions:  $("$work/venv/bin/pip" list 2>/dev/null | awk '/^prefect |^SQLAlchemy |^fastapi / {printf "%s %s ", $1, $2}')"
echo "guess:     a task with the same set of strings is cached, in this process and in the next"
echo "behaviour: only in this one; a list is cached in both"
for process in 1 2; do sed "s/^/seen:      process $process: /" "seen.$process"; done
[ "$(cat seen.1)" = $'set Completed Cached\nlist Completed Cached' ] || { echo "changed: the first process"; exit 1; }
[ "$(cat seen.2)" = $'set Completed Cached\nlist Cached Cached' ] || { echo "changed: the second process"; exit 1; }
