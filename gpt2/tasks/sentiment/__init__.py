"""The task `sentiment`: labels of short texts.

config.py     `SentimentSettings`, `LabelledFile`
dataset.py    a file of labelled texts to splits without leaks; texts to batches
labelling.py  the texts to label next, and their labels back into the file that is learned from
ngrams.py     a linear classifier of hashed n-grams, added to the network
predictor.py  texts to labels and probabilities
report.py     the report: metrics beside baselines, behavioural tests, likely label errors
task.py       `TASK`: examples, module, save
"""

from gpt2.tasks.sentiment.task import TASK as TASK
