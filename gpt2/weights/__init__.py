"""A model on disk."""

from gpt2.weights.directory import load as load
from gpt2.weights.directory import save as save
