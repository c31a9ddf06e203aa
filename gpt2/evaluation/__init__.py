"""Metrics, statistics, and the report.

behavioural_tests.py  CheckList tests: the test cases and their table
confidence.py         temperature scaling; accuracy against coverage when the model abstains
contamination.py      held-out texts that the training text contains
metrics.py            classification, ranking and language-model metrics on arrays
model_card.py         the model card
plots.py              the PNG figures of reports, and their palette
report.py             a report: JSON for machines, a page for people; parameters and latency
significance.py       bootstrap and Wilson intervals, paired permutation, McNemar, Holm
unit_results.py       the results of every system on every unit; slices of a test set; truncated texts
"""
