"""Training on a real Ray with a real DeepSpeed engine: equal to plain PyTorch, and going on after a kill."""

import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster.checkpoints.files import earlier, find
from cluster.config import ClusterConfig
from cluster.connect import NotEnoughResources, connect, disconnect, spread
from cluster.home import store
from cluster.training.launch import NotEnoughDisk, TrainingFailed, train
from cluster.training.worker import STOP
from gpt2.data.tokenizer import Tokenizer
from gpt2.model.config import ModelConfig
from gpt2.training.config import OptimizerConfig, TrainConfig
from gpt2.training.engine import HEAP, TorchEngine
from gpt2.training.guard import Preempted
from gpt2.training.journal import read_journal
from gpt2.training.loop import fit
from gpt2.training_job import TokenFiles, TrainingJob, build
from gpt2.weights import huggingface

MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=32, n_positions=32, vocab_size=300)


@pytest.fixture(scope="module", autouse=True)
def local_ray(session_home):
    connect()
    yield
    disconnect()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tokenizer and token shards."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefgh"), 4)) for _ in range(80)]
    text = " ".join(generator.choice(words, 4000))
    Tokenizer.train([text], 300).save(folder)
    tokens = generator.integers(0, 60, 20_000) * generator.integers(1, 5, 20_000)
    for split in ("train", "validation"):
        tokens.astype("<u2").tofile(folder / f"{split}.bin")
    return folder


def job(inputs: Path, output: Path, **changes) -> TrainingJob:
    output.mkdir(exist_ok=True)
    settings = {
        "steps": 8,
        "batch_size": 8,
        "micro_batch_size": 2,
        "context": 32,
        "precision": "fp32",
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        "eval_every": 4,
        "eval_samples": 8,
        "checkpoint_every": 3,
        "log_every": 1,
    }
    files = {s: [str(inputs / f"{s}.bin")] for s in ("train", "validation")}
    return TrainingJob(
        name="base",
        train=TrainConfig.model_validate({**settings, **changes}),
        tokenizer=str(inputs),
        output=str(output),
        model=MODEL,
        tokens=TokenFiles(dtype="uint16", **files),
    )


def losses(journal: list[dict]) -> list[float]:
    return [r["loss"] for r in journal if "loss" in r]


def on_cluster(work: TrainingJob, **cluster) -> list[dict]:
    config = ClusterConfig(**{"num_workers": 2, "cpus_per_worker": 0.5, "zero_stage": 2, **cluster})
    return train(work, config, lambda record: None, lambda message: None)


@pytest.fixture(scope="module")
def reference(inputs, tmp_path_factory):
    """The losses of one process of plain PyTorch."""
    work = job(inputs, tmp_path_factory.mktemp("plain"))
    parts = build(work)
    folder = Path(work.output)
    fit(TorchEngine(parts.module, work.train), parts.training, parts.validation, work.train, folder)
    return losses(read_journal(folder / "journal.jsonl"))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("stage", "workers"), [(2, 2), (3, 2), pytest.param(0, 2, marks=SLOW), pytest.param(1, 1, marks=SLOW)]
)
def test_zero_equals_plain_pytorch(inputs, reference, tmp_path, stage, workers):
    # Stage 3 with everything that saves memory.
    work = job(inputs, tmp_path / "out", activation_checkpointing=stage == 3)
    options = {"offload_optimizer": stage == 3, "offload_parameters": stage == 3}
    journal = on_cluster(work, zero_stage=stage, num_workers=workers, **options)
    assert losses(journal) == pytest.approx(reference, rel=2e-4)
    model = huggingface.load(tmp_path / "out" / "model")
    assert model.config == MODEL
    norms = [r["grad_norm"] for r in journal if "grad_norm" in r]
    assert min(norms) > 0


def test_killed_worker_resumes_bitwise(inputs, tmp_path):
    """A worker is killed in mid-training: the run ends by itself with the losses and weights of an unbroken one.

    Before it dies its environment is read, as glibc read it at its start.
    """
    whole = on_cluster(job(inputs, tmp_path / "whole", steps=12))
    killed, environment = [], {}

    def assassin():
        while not killed:
            steps = [r["step"] for r in read_journal(tmp_path / "broken" / "journal.jsonl")]
            if steps and max(steps) >= 5:
                for process in psutil.Process().children(recursive=True):
                    if "RayTrainWorker" in " ".join(process.cmdline()):
                        environment.update(process.environ())
                        process.kill()
                        killed.append(process.pid)
                        return
            time.sleep(0.02)

    thread = threading.Thread(target=assassin, daemon=True)
    thread.start()
    # Slow enough to be hit: evaluation after every step.
    broken = on_cluster(job(inputs, tmp_path / "broken", steps=12, eval_every=1, eval_samples=400))
    thread.join(timeout=1)
    assert killed
    assert {name: environment.get(name) for name in HEAP} == HEAP
    assert losses(broken) == losses(whole)
    assert [r["step"] for r in broken if "loss" in r] == list(range(1, 13))
    weights = [(tmp_path / n / "model" / "model.safetensors").read_bytes() for n in ("whole", "broken")]
    assert weights[0] == weights[1]


def test_damaged_checkpoint_is_not_used(inputs, tmp_path):
    """The last checkpoint has a flipped byte: the one before is taken, and the result is the same."""
    work = job(inputs, tmp_path / "out", keep_checkpoints=3)
    first = on_cluster(work)
    weights = (tmp_path / "out/model/model.safetensors").read_bytes()
    steps = sorted((tmp_path / "out/_checkpoints").glob("step-*"))
    assert [s.name for s in steps] == ["step-00000003", "step-00000006", "step-00000008"]
    victim = max(steps[-1].glob("*.safetensors"), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    (tmp_path / "out/model/config.json").unlink()
    (tmp_path / "out/model").rename(tmp_path / "out/_old")
    second = on_cluster(work)
    assert losses(second) == losses(first)
    assert (tmp_path / "out/model/model.safetensors").read_bytes() == weights


def test_another_world_size_goes_on_by_itself(inputs, reference, tmp_path):
    """The first steps by two workers at ZeRO 2, then SIGTERM's file; the rest by one at ZeRO 3: the same losses."""
    work = job(inputs, tmp_path / "out")
    asked = []

    def stop(record):
        if not asked:
            asked.append((tmp_path / "out" / STOP).touch())

    config = ClusterConfig(num_workers=2, cpus_per_worker=0.5, zero_stage=2)
    with pytest.raises(Preempted, match="run the same command to go on"):
        train(job(inputs, tmp_path / "out", eval_every=1, eval_samples=624), config, stop, print)
    messages = []
    config = ClusterConfig(num_workers=1, cpus_per_worker=0.5, zero_stage=3)
    journal = train(work, config, lambda record: None, messages.append)
    assert losses(journal) == pytest.approx(reference, rel=2e-4)
    told = "\n".join(messages)
    assert "goes on from the checkpoint of step" in told and "placement_world_size 1 (was 2)" in told
    begins = [e for e in read_journal(tmp_path / "out" / "events.jsonl") if e["event"] == "begin"]
    assert begins[1]["step"] == begins[1]["reached"]  # no step is done again


@pytest.mark.slow
def test_an_ended_training_is_continued_with_more_steps_and_another_rate(inputs):
    first, second = (store().root / "base" / (digit * 16) for digit in "12")
    for folder in (first, second):
        folder.mkdir(parents=True)
    on_cluster(job(inputs, first, keep_state=True))
    assert [k.training for k in find()] == [f"base-{first.name}"]
    more = {"steps": 10, "optimizer": OptimizerConfig(learning_rate=5e-3), "continue_from": first.name}
    work = job(inputs, second, **more).model_copy(update={"earlier": earlier("base", first.name, None)})
    messages = []
    config = ClusterConfig(num_workers=2, cpus_per_worker=0.5, zero_stage=2)
    journal = train(work, config, lambda record: None, messages.append)
    assert [r["step"] for r in journal if "loss" in r] == [9, 10]
    told = "\n".join(messages)
    assert "goes on from the checkpoint of step 8" in told and "learning_rate 0.005 (was 0.01)" in told
    assert [k.training for k in find()] == [f"base-{first.name}"]  # which is left as it was
    with pytest.raises(ValueError, match=r"continue_from=3{16}: .* has no checkpoint of base/3{16}.*keep_state"):
        earlier("base", "3" * 16, None)


def test_what_can_never_run_is_refused(inputs, tmp_path):
    with pytest.raises(NotEnoughResources, match=r"needs 64 CPUs.*lower cluster.num_workers"):
        on_cluster(job(inputs, tmp_path / "out", batch_size=128), num_workers=64, cpus_per_worker=1)
    with pytest.raises(ValueError, match="not divisible"):
        on_cluster(job(inputs, tmp_path / "out"), num_workers=3)


def test_checkpoints_that_can_never_fit_are_refused(inputs, tmp_path):
    work = job(inputs, tmp_path / "out")
    huge = work.model_copy(update={"model": ModelConfig(n_layer=200, n_head=16, n_embd=16384)})
    with pytest.raises(
        NotEnoughDisk, match=r"4 checkpoints of [\d,]+ bytes and the model need .* lower keep_checkpoints=2"
    ):
        on_cluster(huge)


@pytest.mark.slow
def test_what_only_a_worker_sees_is_told_once_and_not_tried_again(inputs, tmp_path):
    """A split that is too small: its reason, after one more start, and not `max_failures` of them."""
    work = job(inputs, tmp_path / "out", context=8, steps=None, epochs=1, batch_size=4096, micro_batch_size=1)
    with pytest.raises(TrainingFailed, match=r"fewer than one global batch \(batch_size=4096\)"):
        on_cluster(work)
    launches = [e["event"] for e in read_journal(tmp_path / "out" / "events.jsonl")]
    assert launches.count("launch") == 1 and launches.count("failure") == 1


def test_a_rank_that_looks_whether_to_stop_waits_for_no_other(tmp_path):
    """Ray's own question is a barrier: ranks that asked at different steps hung until the watchdog ended them."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def only_the_first(config):
        import ray.train

        from cluster.training.worker import stop_asked

        if ray.train.get_context().get_world_rank() == 0:
            assert not stop_asked(tmp_path)()
            (tmp_path / STOP).touch()
            assert stop_asked(tmp_path)()

    scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5})
    TorchTrainer(only_the_first, scaling_config=scaling, run_config=RunConfig(storage_path=str(tmp_path))).fit()
    assert (tmp_path / STOP).exists()


def test_spread_runs_all_and_raises_the_first_error():
    assert sorted(spread(divide, [(i, 1) for i in range(20)])) == list(range(20))
    with pytest.raises(ZeroDivisionError):
        list(spread(divide, [(1, 1), (1, 0)]))


def divide(a, b):
    return a // b
