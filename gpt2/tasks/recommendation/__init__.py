"""The task `recommendation`."""

from gpt2.tasks.recommendation.task import TASK as TASK
