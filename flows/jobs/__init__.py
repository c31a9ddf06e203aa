"""The deployments: NAME.py is the flow, NAME_plan.py its settings and the keys of its artifacts.

import_plan.py     `ImportConfig` and `ImportPlan`
import_weights.py  the flow `import`: published weights become a version of the base model
monitor.py         the flow `monitor-sentiment`: scores posts, builds the index, sends alerts and drift as events
own_data.py        the flows `train-classifier` and `train-recommender`
own_data_plan.py   `ClassifierConfig`, `RecommenderConfig` and `OwnDataPlan`
recommend.py       the flow `recommend`: the best items for every active user
refresh.py         the flow `refresh`: the champion goes on with new text
refresh_plan.py    `RefreshPlan`: the documents that are new since the champion
reproduce.py       a version made again in a fresh home and compared bit by bit; python -m flows.jobs.reproduce
retrain.py         the flow `retrain`: a version trained again on its sources as they are now
run.py             the form of `gpt2 run`: the pipeline, one stage, or a refresh
search.py          the flow `search`: better fine-tuning settings of a task
search_plan.py     `SearchConfig` and `SearchPlan`: the trials, and the best settings as YAML
"""
