"""The commands of `gpt2`, by subject.

console.py    consoles, shared options, reaching Prefect
machine.py    `gpt2 checkpoints`, `automations`, `doctor`, `clean`
models.py     `gpt2 models`, `promote`, `rollback`, `card`, `verdict`, `copy`, `reproduce`, `serve`, `benchmark`
own_data.py   `gpt2 import`, `train-classifier`, `train-recommender`
run.py        `gpt2 run`, `gpt2 run refresh`, `gpt2 search`
scheduled.py  `gpt2 monitor`, `recommend`
services.py   `gpt2 up`, `down`, `status`
summary.py    the tables before and after a run: settings, size, stages, models, next steps
use.py        `gpt2 predict`, `generate`, `label`, and their files
"""
