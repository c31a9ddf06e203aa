"""Work on Ray's workers that is not training.

contamination.py  the search for held-out texts in the training text
evaluation.py     a model's report, from its directory and its held-out examples
scoring.py        posts scored by a model, and the reference for their drift
search.py         trials under Ray Tune (ASHA)
tokenization.py   documents to token shards
"""
