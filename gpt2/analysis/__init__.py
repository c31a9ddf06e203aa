"""Looking inside a model, for notebooks.

figures.py     the figures that notebooks show
interpret.py   attention maps, residual stream, logit lens and gradients of a model
small_runs.py  small trainings on the CPU: watched step by step, and fine-tunings with their cost
"""
