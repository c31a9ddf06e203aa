"""The `gpt2` command. Heavy libraries are loaded after the settings have been accepted."""

from __future__ import annotations

import os
import signal
import sys
import threading

from cyclopts import App

from cluster.orphans import ending_with_this_process
from cluster.process_env import configure
from flows.commands import models, own_data, scheduled
from flows.commands.console import err
from flows.commands.machine import automations, clean, doctor, export_checkpoint, list_checkpoints, verify_checkpoints
from flows.commands.run import run, search
from flows.commands.use import generate, label, predict

app = App(
    name="gpt2",
    help="Your own GPT-2: text in, registered models out.",
    version=lambda: __import__("gpt2").__version__,
)


for command in (
    run,
    predict,
    generate,
    label,
    automations,
    doctor,
    clean,
    models.models,
    models.promote,
    models.rollback,
    models.card,
    models.verdict,
    models.push,
    models.copy,
    models.reproduce,
    models.serve,
):
    app.command(command)
LEARNERS = (own_data.train_classifier, own_data.train_recommender)
for job in (scheduled.monitor, scheduled.recommend, *LEARNERS, search, models.benchmark):
    app.command(job)
app.command(own_data.import_weights, name="import")

SERVICES = {  # the help stands here, so that showing it need not import the module
    "up": "Start Prefect with its UI and a worker, MLflow and Ray, and keep them running.\n\n"
    "Services that PREFECT_API_URL, MLFLOW_TRACKING_URI or RAY_ADDRESS name are used, not started. Ctrl-C or "
    "`gpt2 down` stops everything that this started and nothing else.",
    "down": "Stop what up started: first the runs, which save and can resume, then the services.",
    "status": "Show the services of up: address, whether each answers, log.",
}
for name, text in SERVICES.items():
    app.command(f"flows.commands.services:{name}", name=name, help=text)

checkpoints = App(name="checkpoints", help="The checkpoints of trainings that have not ended.")
app.command(checkpoints)
checkpoints.default(list_checkpoints)
checkpoints.command(verify_checkpoints, name="verify")
checkpoints.command(export_checkpoint, name="export")


FLOORS = ("gpt2", "cluster", "flows")


def main() -> None:
    """Run the command. A `ValueError` ends it with exit code 2 and one line, any other error of ours with 1 and one."""
    configure()
    os.environ["PYTHONSAFEPATH"] = "1"  # what we start finds our modules, not those of the folder that one stands in
    signal.signal(signal.SIGTERM, leave)  # a training has a handler of its own (`cluster.training.stopping`)
    try:
        with ending_with_this_process() as guard:
            guard.keep()
            app()
    except ValueError as error:
        tell("refused", error)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__module__.partition(".")[0] not in FLOORS:
            raise
        tell("failed", error)
        sys.exit(1)


LEAVING_SECONDS = 25
"""Most seconds from a SIGTERM to the end of the process: Prefect would ask a server that is gone for minutes."""


def leave(number: int, frame: object) -> None:
    """Exit through Python's clean-up, and be killed if that takes too long."""
    killing = threading.Timer(LEAVING_SECONDS, os.kill, (os.getpid(), signal.SIGKILL))
    killing.daemon = True
    killing.start()
    sys.exit(128 + number)


def tell(what: str, error: Exception) -> None:
    """Print an error that has its cause and remedy in its message."""
    err.print(f"[red]{what}:[/]", end=" ")
    err.print(str(error), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
