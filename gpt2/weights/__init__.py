"""A model on disk.

adapters.py     adapter.safetensors: saved, read, loaded
directory.py    a model's directory: `save` and `load`
huggingface.py  GPT-2's layout as `transformers` reads it; models by hub id
published.py    published weights, checked before they are imported
tensors.py      tensors out of files of unknown origin; nothing is executed
"""

from gpt2.weights.directory import load as load
from gpt2.weights.directory import save as save
