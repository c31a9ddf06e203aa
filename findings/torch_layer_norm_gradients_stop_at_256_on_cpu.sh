#!/usr/bin/env bash
# PyTorch on a CPU, bf16: a layer norm's gradients of weight and bias, and an embedding's, stop growing at 256 equal terms.
#
# Guess:    kernels round to bf16 once, at the end, as matrix products, `sum` and `nn.RMSNorm` do: the gradient of a bias
#           that 4,096 rows share is 4,096.
# Happens:  each thread adds its rows up in bf16, which has 8 bits: 256 + 1 is 256. One thread has 256 of 4,096, an
#           embedding row that 4,096 tokens share as well, and `table[ids]`. With fp32 parameters under autocast no less.
#           Rows that differ lose less: of 4,096 random ones the error is some 5 to 40 %.
# Matters:  the more tokens a micro-batch has, the more of the gradient is lost, without a word, and Adam hides it.
# Instead:  the sums as plain tensors: `dy.sum(0)` and `(normal * dy).sum(0)`; `table.index_select(0, ids)`; or
#           `torch.compile`, whose kernels add up in fp32. Compare a bf16 step's gradients with fp32 at your batch size.
#
# Seen (torch 2.13.0, CPU, one thread), gradients that should be 4096: layer norm's bias 256, embedding 256,
# table[ids] 256; index_select 4096, RMS norm's weight 4096, a linear layer's bias 4096.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 2>"$work/pip.log" || { cat "$work/pip.log"; exit 1; }
cd "$work"
cat >try.py <<'PY'
import torch
from torch import nn

torch.set_num_threads(1)
rows, width = 4096, 8
x, ids = torch.ones(rows, width, dtype=torch.bfloat16), torch.zeros(rows, dtype=torch.long)


def of(parameter, result):
    result.sum().backward()
    return parameter.grad.flatten()[0].item()


norm, linear = nn.LayerNorm(width).bfloat16(), nn.Linear(width, width).bfloat16()
rms, embedding = nn.RMSNorm(width, eps=0).bfloat16(), nn.Embedding(3, width).bfloat16()
indexed, selected = (torch.zeros(3, width, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
lost = {
    "layer norm's bias": of(norm.bias, norm(x)),
    "embedding": of(embedding.weight, embedding(ids)),
    "table[ids]": of(indexed, indexed[ids]),
}
kept = {
    "index_select": of(selected, selected.index_select(0, ids)),
    "RMS norm's weight": of(rms.weight, rms(x)),
    "linear's bias": of(linear.bias, linear(x)),
}
print("versions:  torch", torch.__version__)
print("guess:     each gradient is", rows)
print("behaviour: sums of layer norm and embedding stop at 256")
print("seen:     ", lost, kept)
assert set(lost.values()) == {256.0}, "changed: the sums of bf16"
assert set(kept.values()) == {4096.0}, "changed: the sums that are exact"
PY
OMP_NUM_THREADS=1 "$work/venv/bin/python" try.py
