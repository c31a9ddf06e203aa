"""The task `sentiment`."""

from gpt2.tasks.sentiment.task import TASK as TASK
