"""Which arithmetic a machine is given."""

import pytest
import torch

from gpt2.training import hardware
from gpt2.training.config import TrainConfig


@pytest.mark.parametrize(
    ("asked", "gpu", "quickest", "expected"),
    [
        ("auto", True, torch.float32, "bf16"),
        ("auto", False, torch.bfloat16, "bf16"),
        ("auto", False, torch.float32, "fp32"),
        ("bf16", False, torch.float32, "bf16"),
        ("fp32", True, torch.bfloat16, "fp32"),
        ("fp16", True, torch.float32, "fp16"),
    ],
)
def test_auto_is_what_the_hardware_multiplies(monkeypatch, asked, gpu, quickest, expected):
    monkeypatch.setattr(hardware, "quickest", lambda: quickest)
    train = TrainConfig(steps=3, precision=asked)
    assert hardware.decided(train, gpu) == TrainConfig(steps=3, precision=expected)
