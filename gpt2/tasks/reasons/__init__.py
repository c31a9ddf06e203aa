"""The task `reasons`: a sentence that recommends an item, for a user with a history.

checks.py     the checks that a written sentence must pass to be shown; copied runs of words
config.py     `ReasonsSettings`
dataset.py    reviews to sentences about items; prompts and sentences to batches
predictor.py  item and history to a sentence, or why it is withheld; the model that writes it
report.py     form, copying and fate of written sentences
task.py       `TASK`: examples, module, save, evaluation
"""

from gpt2.tasks.reasons.task import TASK as TASK
