"""The task `reasons`."""

from gpt2.tasks.reasons.task import TASK as TASK
