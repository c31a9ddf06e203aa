"""Writing text.

cpu_decoder.py  fast single-token steps on a CPU
generate.py     prompts to texts, whole or streamed; sampling; the key-value cache
"""
