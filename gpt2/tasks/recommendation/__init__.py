"""The task `recommendation`: the next item of a user, by the items' texts.

catalogue.py  files of items and interactions to items as text and histories in order of time; facts
config.py     `RecommendationSettings`, `CatalogueFiles`, `InteractionsFile`, `RecommendConfig`
dataset.py    histories to batches; `Recommender`, the module that is trained
hybrid.py     popularity, item-kNN and EASE, as baselines and joined to the model's score
page.py       the page of recommendations
predictor.py  histories to rankings
recommend.py  the best items for every active user, with reasons
report.py     the report: rank of the next choice beside baselines; behavioural tests; another catalogue
task.py       `TASK`: examples, module, save
"""

from gpt2.tasks.recommendation.task import TASK as TASK
