#!/usr/bin/env bash
# DeepSpeed: with bf16 and ZeRO 1, 2 or 3 the micro-batches of a step are added up in bf16, and many of them stop counting.
#
# Guess:    bf16 keeps weights, optimizer and so the accumulated gradient in fp32: 1,024 equal micro-batches give the same
#           gradient as one.
# Happens:  only weights and optimizer are in fp32. The gradient is added up in bf16, which has 8 bits: once the sum is
#           256 times a micro-batch's share, adding it changes nothing. 512 equal ones give half the gradient, 1,024 a
#           quarter. Micro-batches that differ lose less, yet they lose.
# Matters:  who has few GPUs accumulates the most. Adam hides the lost length, but the later micro-batches of a step count
#           less than the earlier ones, and a norm to clip by or to watch is too small.
# Instead:  "data_types": {"grad_accum_dtype": "fp32"}, exact at these stages, refused at 0; or PyTorch's own
#           `parameter.grad_dtype = torch.float32`, which serves 0 and 1. Compare the gradient of one step with fp32.
#
# Seen (deepspeed 0.19.8, torch 2.13.0, CPU, one process), gradient of 1.0: at stages 1, 2 and 3 alike 1.0 of 256
# micro-batches, 0.5 of 512, 0.25 of 1,024; with grad_accum_dtype fp32 always 1.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 setuptools==84.2.1 wheel==0.48.0 2>"$work/pip.log" &&
    "$work/venv/bin/pip" install --quiet deepspeed==0.19.8 2>>"$work/pip.log" || { cat "$work/pip.log"; exit 1; }
cd "$work"
export DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 TRITON_CACHE_DIR="$work/triton"
cat >try.py <<'PY'
import os
import socket

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    os.environ["MASTER_PORT"] = str(free.getsockname()[1])

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # an op for inference that would need a compiler
deepspeed.init_distributed("gloo")


class Model(torch.nn.Module):
    """Its gradient is 1 in the first row of the weights, of every micro-batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8, 8))

    def forward(self, inputs):
        return (inputs @ self.weight).sum()


def gradient(stage, micro_batches, more):
    """What one step of plain SGD at rate 1 takes off the fp32 weight: the mean gradient of the micro-batches."""
    model = Model()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        **more,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    inputs = torch.eye(1, 8, dtype=torch.bfloat16)
    for _ in range(micro_batches):
        engine.backward(engine(inputs))
        engine.step()
    after = -safe_get_full_fp32_param(engine.module.weight)[0, 0].item()
    engine.destroy()
    return after


print("versions:  deepspeed", deepspeed.__version__, "torch", torch.__version__)
print("guess:     the mean gradient of any number of equal micro-batches is the one of one, 1.0")
print("behaviour: beyond 256 of them it shrinks, unless grad_accum_dtype is fp32")
counts = (256, 512, 1024)
for stage in (1, 2, 3):
    plain = [gradient(stage, count, {}) for count in counts]
    exact = [gradient(stage, count, {"data_types": {"grad_accum_dtype": "fp32"}}) for count in counts]
    print(f"seen:      stage {stage}, {counts} micro-batches: {plain}, with fp32 {exact}", flush=True)
    assert plain == [1.0, 0.5, 0.25], "changed: the sum of bf16"
    assert exact == [1.0, 1.0, 1.0], "changed: the sum of fp32"
PY
"$work/venv/bin/python" try.py >seen 2>log || { cat log seen; exit 1; }
grep -E '^(versions|guess|behaviour|seen): ' seen
