"""Where it runs and what is recorded: Ray, DeepSpeed, MLflow.

batch/          work on Ray's workers that is not training
checkpoints/    checkpoints on disk, and their copies
config.py       `ClusterConfig`: workers, devices, ZeRO, keys of DeepSpeed's own
connect.py      a Ray: attach or start; spread calls over it
engine/         DeepSpeed
home.py         GPT2_HOME: its folders, its state and secrets, its latest pages
orphans.py      what a process starts ends with it, SIGKILL included
process_env.py  the environment of every process, set before Prefect, Ray or MLflow is imported; versions, hardware
registry/       MLflow model versions
services/       the services of `gpt2 up`, and `gpt2 doctor`
serving.py      `gpt2 serve`: the endpoints
tracking/       MLflow runs
training/       one training on Ray Train
"""
