"""GPT-2 computed: model, tokenizer, data, training loop, tasks, metrics. Needs PyTorch, not a cluster."""

from gpt2.loading import load as load

__version__ = "0.1.0"
