"""Artifacts and model files: whole or absent.

artifact.py     `Key`, `Artifact`, `Store`, `code_version`; atomic writes and digests
model_files.py  the files that a model may have, their manifest, task.json, safe JSON
"""
