"""The task `support`."""

from gpt2.tasks.support.task import TASK as TASK
