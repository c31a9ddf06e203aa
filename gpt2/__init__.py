"""GPT-2 computed: model, tokenizer, data, training loop, tasks, metrics. Needs PyTorch, not a cluster."""

__version__ = "0.1.0"
