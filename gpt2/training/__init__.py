"""The training loop and everything it needs.

config.py        `TrainConfig`, `OptimizerConfig`, `GuardConfig`, `RefreshConfig`, `DistilConfig`, `BudgetConfig`
cost.py          goodput, CPU and GPU seconds, energy and money of a training
distillation.py  a student beside its teacher
engine.py        the `Engine` protocol and the plain PyTorch engine
guard.py         steps with bad gradients are skipped; the exceptions that end a training
journal.py       metrics and events as lines of JSON
loop.py          `fit`, the one training loop; the `Checkpoints` protocol
optimizer.py     parameter groups, AdamW, Muon, learning-rate schedules
"""
