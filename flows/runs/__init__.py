"""How a flow run behaves.

ending.py             `carry_out`: how a job begins and ends; equal jobs once, one training at a time
events.py             the events that others react to
prefect_artifacts.py  progress, curves and pages on a Prefect run, and its name
services.py           services started side by side before a run; a server that goes away meanwhile
stage.py              an artifact found done, or built inside a recorded MLflow run
"""
