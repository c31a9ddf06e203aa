"""What can be fine-tuned and registered: one file, or one folder, per task.

A task is a module or a folder here with a `TASK`; `gpt2/README.md` shows one in a file.

base/            the pretrained model
config.py        `TaskSettings`, which every task has; `EvaluateConfig`
reasons/         a sentence that recommends an item, shown only if it passes checks
recommendation/  the next item of a user, by the items' texts
sentiment/       labels of short texts
support/         answers to questions, from a knowledge file
task.py          `ModelKind` (can be registered), `Task` (can be fine-tuned), look-up by name
"""
