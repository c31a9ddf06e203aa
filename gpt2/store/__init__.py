"""Artifacts and model files: whole or absent.

artifact.py     `Key`, `Artifact`, `Store`; atomic writes and digests
code.py         the code that a result depends on: modules found by their imports, and its hash
model_files.py  the files that a model may have, their manifest, task.json, safe JSON
remote.py       a store at any fsspec address, with a cache on this machine; leases instead of locks
"""
