"""What stands in a run's log."""

import logging
from uuid import uuid4

from prefect import flow
from prefect.client.schemas import FlowRun
from prefect.flow_engine import FlowRunEngine
from prefect.states import Completed

from flows.runs.stage import NoTraceback


def test_lines_on_hooks_that_ran_well_are_left_out(caplog):
    def well(flow, run, state):
        pass

    def badly(flow, run, state):
        raise RuntimeError("no such run")

    @flow(on_completion=[well, badly])
    def work():
        pass

    log = logging.getLogger("prefect.flow_runs")
    log.addHandler(caplog.handler)
    try:  # the engine's own calls, without a server
        FlowRunEngine(flow=work, flow_run=FlowRun(flow_id=uuid4(), name="a run")).call_hooks(Completed())
    finally:
        log.removeHandler(caplog.handler)
    kept = [record.getMessage() for record in caplog.records if NoTraceback().filter(record)]
    assert len(caplog.records) == 4 and kept == ["An error was encountered while running hook 'badly'"]
