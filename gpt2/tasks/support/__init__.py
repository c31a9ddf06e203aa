"""The task `support`: answers to questions, from a knowledge file.

config.py     `SupportSettings`
dataset.py    a knowledge file to questions with answers; prompts and batches
predictor.py  questions to answers and checked replies
report.py     behavioural tests for questions, remarks
retriever.py  questions and answers as unit vectors; BM25 and TF-IDF; weights of several scores
task.py       `TASK`: examples, module, save, evaluation
"""

from gpt2.tasks.support.task import TASK as TASK
