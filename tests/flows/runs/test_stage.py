"""What stands in a run's log."""

import logging

from prefect import flow

from flows.runs.stage import NoTraceback


def test_lines_on_hooks_that_ran_well_are_left_out(caplog):
    def well(flow, run, state):
        pass

    def badly(flow, run, state):
        raise RuntimeError("no such run")

    @flow(on_completion=[well, badly])
    def work():
        return 1

    kept = NoTraceback()
    log = logging.getLogger("prefect.flow_runs")
    log.addHandler(caplog.handler)
    try:
        work()
    finally:
        log.removeHandler(caplog.handler)
    said = [(record.getMessage(), kept.filter(record)) for record in caplog.records if "ook '" in record.getMessage()]
    assert [message.partition(" ")[0] for message, _ in said if not _] == ["Running", "Hook", "Running"]
    assert [message for message, stays in said if stays] == ["An error was encountered while running hook 'badly'"]
