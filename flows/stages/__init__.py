"""The pipeline's stages.

evaluation.py    every model beside its baselines
gate.py          the verdict: reports of two versions in, kept with the version and shown
provenance.py    the model card and provenance.json
registration.py  a version, the gate, the alias
results.py       the results page, and events of the gate
tokenization.py  documents to token shards
training.py      pretraining and fine-tuning: a job on the cluster, with its journal in the log and in MLflow
"""
