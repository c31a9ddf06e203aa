"""How a flow run behaves.

ending.py             `carry_out`: how a job begins and ends; cancellation, deadline, duplicates
events.py             the events that others react to
locks.py              equal runs once, one training at a time
names.py              what a flow run is called
prefect_artifacts.py  progress, curves and pages on a Prefect run
services.py           services started side by side before a run; a server that goes away meanwhile
stage.py              an artifact found done, or built inside a recorded MLflow run
"""
