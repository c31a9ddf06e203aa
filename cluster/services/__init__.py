"""The services of `gpt2 up`, and `gpt2 doctor`.

databases.py  SQLite or PostgreSQL
deploy/       image, Compose and Kubernetes files: what a team deploys
doctor.py     whether this machine is fit, with remedies
processes.py  services as processes: start, watch, stop; MLflow's server and a Ray head
"""
