"""The gate: whether a version may become the champion.

config.py        `GateConfig`: the promotion policy
verdict.py       promote or not: every criterion, from paired results per unit or from values alone
verdict_page.py  a verdict on disk: its inputs, its JSON, its page, and computing it again
"""
