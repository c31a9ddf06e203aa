"""The task `support`: answers to questions, from a knowledge file.

config.py     `SupportSettings`
dataset.py    a knowledge file to questions with answers; prompts and batches
predictor.py  questions to answers and checked replies
report.py     the report: rank of the right answer beside BM25 and TF-IDF; behavioural tests
retriever.py  questions and answers as unit vectors; BM25 and TF-IDF; weights of several scores
task.py       `TASK`: examples, module, save
"""

from gpt2.tasks.support.task import TASK as TASK
