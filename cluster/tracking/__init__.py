"""MLflow runs.

retry.py        an MLflow client that waits for its server
runs.py         MLflow runs: a parent per pipeline, a child per stage; metrics sent from a thread
"""
