"""MLflow model versions.

download.py      verified download of a version
followed.py      a model that is served: follows its alias, answers in batches, keeps a log
lineage.py       from a base model back to its text
local.py         a registry in a local file, read without importing MLflow
promotion.py     champion, challenger, rollback, and copies to another registry, without locks
pyfunc_model.py  the code inside every registered model
resolve.py       the version behind an address, before it is loaded; the entry point of models:/ for `gpt2.load`
versions.py      model versions: register, find, list
"""
