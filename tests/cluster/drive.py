"""A training's driver as a process of its own, for tests that kill it: python -m tests.cluster.drive JOB CLUSTER."""

import signal
import sys
from pathlib import Path

from cluster.config import ClusterConfig
from cluster.connect import disconnect
from cluster.process_env import configure
from cluster.training.launch import train
from cluster.training.stopping import politely
from gpt2.training_job import TrainingJob


def main() -> None:
    configure()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    job = TrainingJob.model_validate_json(Path(sys.argv[1]).read_text())
    cluster = ClusterConfig.model_validate_json(Path(sys.argv[2]).read_text())
    try:
        with politely():
            train(job, cluster, lambda record: None, lambda message: print(message, flush=True))
    finally:
        disconnect()


if __name__ == "__main__":
    main()
