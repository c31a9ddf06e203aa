"""The task `reasons`: a sentence that recommends an item, for a user with a history.

checks.py     the checks that a written sentence must pass to be shown; copied runs of words
config.py     `ReasonsSettings`
dataset.py    reviews to sentences about items; prompts and sentences to batches
predictor.py  item and history to a sentence, or why it is withheld; the model that writes it
report.py     the report: likelihood of held-out sentences; form, copying and fate of written ones
task.py       `TASK`: examples, module, save
"""

from gpt2.tasks.reasons.task import TASK as TASK
