"""Where a model computes, in which arithmetic, and that one file decides it."""

import ast
from pathlib import Path

import pytest
import torch

import gpt2.training.engine as engine
from gpt2.model import hardware
from gpt2.training.config import TrainConfig

ROOT = Path(__file__).parents[3]


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
    monkeypatch.setattr(engine, "quickest", lambda: quickest)
    train = TrainConfig(steps=3, precision=asked)
    assert engine.decided(train, gpu) == TrainConfig(steps=3, precision=expected)


def named_devices(text: str) -> list[str]:
    """Return where a source names a device: its name as a text, or PyTorch's functions of it."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.partition(":")[0] in (hardware.CPU, hardware.GPU):
                found.append(f"line {node.lineno}: {node.value!r}")
        elif isinstance(node, ast.Attribute) and node.attr in ("cuda", "is_cuda", "mps", "xpu"):
            found.append(f"line {node.lineno}: .{node.attr}")
    return found


def test_no_other_file_names_a_device():
    own = ROOT / "gpt2/model/hardware.py"
    files = [path for floor in ("gpt2", "cluster", "flows") for path in (ROOT / floor).rglob("*.py") if path != own]
    named = {str(path.relative_to(ROOT)): found for path in files if (found := named_devices(path.read_text()))}
    assert named == {} and len(files) > 150
    assert len(named_devices(own.read_text())) > 5  # the search finds what is there
    assert named_devices('x.to("cuda:1"); torch.cuda.is_available()') == ["line 1: 'cuda:1'", "line 1: .cuda"]


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "cuda:-3"])
def test_a_device_that_is_not_here_is_refused_by_name(monkeypatch, name):
    monkeypatch.setenv(hardware.CHOSEN, name)
    with pytest.raises(ValueError, match=f"{hardware.CHOSEN}='{name}': .*; give cpu"):
        hardware.device_for_use()


def test_a_model_for_use_is_where_the_user_says(monkeypatch):
    module = torch.nn.Linear(2, 2)
    monkeypatch.delenv(hardware.CHOSEN, raising=False)
    assert hardware.device_for_use() == hardware.fastest_device()
    monkeypatch.setenv(hardware.CHOSEN, "cpu")
    monkeypatch.setattr(hardware, "gpus", lambda: 2)  # as if there were some
    made = hardware.ready(module)
    assert made is module and not made.training and hardware.device_of(made) == torch.device("cpu")
    assert made.weight.dtype == torch.float32 and hardware.at_once(made, 16) == 16
    assert hardware.ready(module, low=True).weight.dtype == hardware.quickest()
    monkeypatch.setenv(hardware.CHOSEN, "cuda:1")
    assert hardware.device_for_use() == torch.device("cuda:1")
    monkeypatch.delenv(hardware.CHOSEN)
    assert hardware.device_for_use() == torch.device("cuda")
