"""Our settings in DeepSpeed's terms."""

import pytest

from cluster.config import ClusterConfig
from cluster.engine.deepspeed_engine import accumulation_steps, deepspeed_config
from gpt2.training.config import TrainConfig

TRAIN = TrainConfig(steps=10, batch_size=32, micro_batch_size=4)


@pytest.mark.parametrize(("workers", "expected"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_batch_arithmetic(workers, expected):
    assert accumulation_steps(TRAIN, workers) == expected
    config = deepspeed_config(TRAIN, ClusterConfig(num_workers=workers), workers)
    sizes = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * workers
    assert sizes == config["train_batch_size"] == 32


@pytest.mark.parametrize("workers", [3, 16])
def test_batch_that_does_not_divide_is_refused(workers):
    with pytest.raises(ValueError, match=rf"batch_size=32.*num_workers={workers}"):
        accumulation_steps(TRAIN, workers)


@pytest.mark.parametrize("precision", ["bf16", "fp32", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stage_and_precision(stage, precision):
    train = TrainConfig(steps=10, precision=precision)
    config = deepspeed_config(train, ClusterConfig(zero_stage=stage), 2)
    assert config["zero_optimization"]["stage"] == stage
    assert config["bf16"]["enabled"] == (precision == "bf16")
    assert config["fp16"]["enabled"] == (precision == "fp16")
    assert "auto" not in str(config)  # only another trainer fills it in


def test_offload():
    cluster = ClusterConfig(zero_stage=3, offload_optimizer=True, offload_parameters=True)
    zero = deepspeed_config(TRAIN, cluster, 2)["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "cpu"
