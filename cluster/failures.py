"""What Ray Train's controller knows of failed workers, told as events of the training."""

from __future__ import annotations

from pathlib import Path

from ray.train import UserCallback

from cluster.train import last_line
from gpt2.journal import Events


class TellFailures(UserCallback):
    """Lives in Ray Train's controller."""

    def __init__(self, folder: str):
        self.folder = folder

    def after_exception(self, run_context, worker_exceptions) -> None:
        causes = {str(rank): last_line(error) for rank, error in sorted(worker_exceptions.items())}
        Events(Path(self.folder)).tell("failure", workers=causes)
