"""The Transformer and what is put on it.

adapters.py     LoRA and prefix modules
config.py       `ModelShape`, `ModelConfig`, the published sizes, `AdaptationConfig`
hardware.py     where a model computes: device, precision, rows at once; peak FLOP/s
heads.py        the language-model head and the classifier; padding and packing
layers.py       normalisation, embedding and the next-token loss, with exact gradients and few logits at a time
transformer.py  GPT-2, whole, top to bottom
"""
