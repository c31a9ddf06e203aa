"""The loss holds a slice of the logits: measured by PyTorch's profiler, in training and in evaluation."""

from collections.abc import Callable

import pytest
import torch

from gpt2.model import layers as loss
from gpt2.model.config import ModelConfig
from gpt2.model.layers import loss_rows
from gpt2.model.transformer import GPT2

V = 60_000


def memory(run: Callable[[], object]) -> tuple[int, int]:
    """The most bytes that are held at a time, and the largest tensor's."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most, max(event.nbytes() for event in events)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_more_tokens_need_no_more_logits(training, dtype):
    model = GPT2(ModelConfig(vocab_size=V, n_positions=512, n_embd=8, n_layer=1, n_head=1), seed=0).to(dtype)

    def of(rows: int) -> tuple[int, int]:
        ids = torch.randint(V, (rows, 512), generator=torch.Generator().manual_seed(rows))
        return memory(lambda: model.loss(ids, ids).backward() if training else model.loss_sum(ids, ids))

    (less, _), (more, largest) = of(1), of(2)
    assert more - less < 0.02 * 512 * V * dtype.itemsize  # of the logits of the texts that were added
    assert largest <= loss.LOSS_SLICE_CPU * (1 if training else 4 / dtype.itemsize)  # evaluated in fp32


def test_the_slice_at_the_published_shape():
    """Of 124M in bf16: 154 MB on a CPU, 268 MB on a GPU, however many tokens a batch has; 8 x 1,024 are 823 MB."""
    for device, expected in (("cpu", 1536), ("cuda", 2670)):
        assert loss_rows(50257, 768, torch.bfloat16, device) == expected
