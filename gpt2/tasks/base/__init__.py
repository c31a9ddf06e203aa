"""The pretrained model as a kind: how it is evaluated, used and described.

benchmarks.py  LAMBADA and HellaSwag from local files; other tasks by lm-evaluation-harness
exposure.py    exposure of planted canaries (Carlini et al. 2019)
kind.py        `BASE`: its card, parameters, predictor and unit results
report.py      perplexity and bits per byte on held-out text, also of another tokenizer; sample texts
"""

from gpt2.tasks.base.kind import BASE as BASE
