"""What every rank of `run_ranks` has imported before it is forked."""

from cluster.engine.deepspeed_engine import prepare_environment

prepare_environment(use_gpu=False, compile=False)
