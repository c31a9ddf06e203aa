"""Our settings in DeepSpeed's terms."""

import pytest

from cluster.config import CHANGING, DECIDED, OPERATIONAL, ClusterConfig
from cluster.engine.deepspeed_engine import accumulation_steps, deepspeed_config
from gpt2.training.config import TrainConfig
from tests.cluster.engines import engine_of, save, steps
from tests.cluster.ranks import run_ranks

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


ZERO = "zero_optimization"


@pytest.mark.parametrize(
    ("given", "stage", "message"),
    [
        ({"train_batch_size": 8}, 2, "train_batch_size=8.*the training's batch_size"),
        ({"gradient_accumulation_steps": 2}, 2, "follows from the training's batch_size"),
        ({"gradient_clipping": 1.0}, 2, "optimizer.clip"),
        ({"optimizer": {"type": "Adam", "params": {"lr": 1}}}, 2, "optimizer.type.*optimizer.kind"),
        ({"bf16": {"enabled": True}}, 2, "bf16.enabled=True.*the training's precision"),
        ({"fp16": {"enabled": True}}, 2, "the training's precision"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, 2, "added up in fp32"),
        ({ZERO: {"stage": 3}}, 2, "zero_optimization.stage=3.*set cluster.zero_stage"),
        ({ZERO: {"offload_optimizer": {"device": "nvme"}}}, 2, "device='nvme'.*set cluster.offload_optimizer"),
        ({ZERO: {"round_robin_gradients": True}}, 2, "in the model's order"),
        ({ZERO: 2}, 2, "zero_optimization=2: is no key"),
        ({ZERO: {"reduce_bucket_sise": 5}}, 2, "did you mean zero_optimization.reduce_bucket_size"),
        ({ZERO: {"reduce_bucket_size": "auto"}}, 2, "give a number"),
        ({ZERO: {"reduce_bucket_size": 1.5}}, 2, "give a whole number"),
        ({ZERO: {"reduce_bucket_size": -5}}, 2, "0 or more"),
        ({ZERO: {"allgather_partitions": 1}}, 2, "give true or false"),
        ({"communication_data_type": "fp8"}, 2, "give fp32, bf16 or fp16"),
        ({ZERO: {"reduce_bucket_size": 5}}, 0, "set zero_stage to 1, 2 or 3"),
        ({ZERO: {"stage3_max_live_parameters": 5}}, 2, "set zero_stage to 3"),
        ({ZERO: {"zero_quantized_weights": True}}, 3, "set use_gpu: true"),
        ({ZERO: {"offload_optimizer": {"pin_memory": False}}}, 2, "set offload_optimizer: true"),
    ],
)
def test_what_contradicts_our_settings_is_refused_with_the_remedy(given, stage, message):
    with pytest.raises(ValueError, match=message):
        ClusterConfig(zero_stage=stage, deepspeed=given)


def test_keys_are_passed_on_and_counted_where_they_change_the_model():
    given = {ZERO: {"reduce_bucket_size": 5e4, "overlap_comm": True}, "communication_data_type": "bf16"}
    cluster = ClusterConfig(deepspeed=given)
    config = deepspeed_config(TRAIN, cluster, 2)
    assert config[ZERO]["reduce_bucket_size"] == 50_000 and config[ZERO]["overlap_comm"] is True
    assert config[ZERO]["stage"] == 2 and config["communication_data_type"] == "bf16"
    assert cluster.changing() == {"deepspeed": {"communication_data_type": "bf16"}}
    assert ClusterConfig(deepspeed={ZERO: given[ZERO]}).changing() == ClusterConfig().changing() == {}
    assert ClusterConfig.model_validate_json(cluster.model_dump_json()) == cluster


def test_every_key_of_deepspeeds_is_passed_on_or_decided():
    """DeepSpeed ignores an unknown section, so that its own names are compared with ours."""
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = OPERATIONAL | CHANGING | DECIDED
    for section, schema in ((ZERO, DeepSpeedZeroConfig), ("fp16", DeepSpeedFP16Config)):
        names = {f"{section}.{field.alias or name}" for name, field in schema.model_fields.items()}
        ours = {".".join(name.split(".")[:2]) for name in known if name.startswith(f"{section}.")}
        assert ours <= names
        assert names - ours <= {f"{ZERO}.{name}" for name in ELSEWHERE}
    for name, kind in (OPERATIONAL | CHANGING).items():
        if name.startswith(f"{ZERO}.") and name.count(".") == 1:
            value = kind(1)
            assert DeepSpeedZeroConfig(stage=3, **{name.split(".")[1]: value})


ELSEWHERE = {
    "cpu_offload_use_pin_memory", "gather_16bit_weights_on_model_save", "stage3_gather_16bit_weights_on_model_save",
    "stage3_gather_fp16_weights_on_model_save", "legacy_stage1", "pipeline_loading_checkpoint", "leaf_module",
    "save_muon_momentum_buffer_in_memory",
}  # fmt: skip
"""Of its own checkpoints and optimizers, of mixtures of experts, and old names: refused as unknown."""

PASSED = {
    "reduce_bucket_size": 1000, "allgather_bucket_size": 2000, "allgather_partitions": False, "reduce_scatter": False,
    "parameter_alignment": True, "use_multi_rank_bucket_allreduce": False,
    "contiguous_gradients": False,
}  # fmt: skip
PASSED_3 = {
    "reduce_bucket_size": 8000, "sub_group_size": 5000, "stage3_prefetch_bucket_size": 1000,
    "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 10_000, "stage3_max_reuse_distance": 1000,
    "stage3_allgather_sequential": True, "zero_hpz_partition_size": 2,
}  # fmt: skip


def trained_with(folder):
    """The losses of every stage with and without keys passed on, and after a checkpoint of one is read by the other."""
    found = {}
    for stage, given in ((1, PASSED), (2, PASSED), (3, PASSED_3)):
        plain = engine_of(stage)
        wanted = steps(plain, 0, 3)
        other = engine_of(stage, deepspeed={ZERO: given})
        got = steps(other, 0, 3)
        save(other, folder / str(stage))
        plain.load(folder / str(stage))
        taken = other.engine._config.zero_config.reduce_bucket_size
        found[stage] = wanted, got, steps(plain, 3, 5), steps(other, 3, 5), taken
    return found


def test_a_real_engine_with_passed_keys_has_the_same_losses(tmp_path):
    for found in run_ranks(2, trained_with, tmp_path):
        for stage, (wanted, got, later, other, taken) in found.items():
            assert got == wanted and other == later, stage
            assert taken == (PASSED_3 if stage == 3 else PASSED)["reduce_bucket_size"]
