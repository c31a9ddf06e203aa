"""How many flow runs at a time the SQLite files of `gpt2 up` stand: its two servers, and runs' writes at their rate.

Each run, as a training's does, makes itself known to both servers, then each second logs 20 metrics to MLflow, and 20
lines and its progress to Prefect, and ends. A request fails where a client of ours would see an error, after all of
its own patience. GPT2_POSTGRES_URL set: PostgreSQL's databases instead.
"""

import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

AT_ONCE = (4, 8, 16, 32)
SECONDS = float(os.environ.get("GPT2_BENCH_SECONDS", 20))


class Writer(threading.Thread):
    """One run; how long each of its requests took (s), and what failed."""

    def __init__(self, number: int, deadline: float):
        super().__init__()
        self.number, self.deadline = number, deadline
        self.took: list[float] = []
        self.failed: list[str] = []

    def timed(self, call, *words, **named):
        started = time.monotonic()
        try:
            return call(*words, **named)
        except Exception as error:
            self.failed.append(f"{type(error).__name__}: {str(error)[:200]}")
        finally:
            self.took.append(time.monotonic() - started)

    def run(self):
        from mlflow import MlflowClient
        from mlflow.entities import Metric
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate, LogCreate
        from prefect.flows import Flow
        from prefect.states import Completed, Running
        from prefect.types._datetime import now

        from cluster.tracking.runs import experiment_id

        mlflow = MlflowClient()
        with get_client(sync_client=True) as prefect:
            known = self.timed(prefect.create_flow_run, Flow(lambda: None, name="bench"))
            self.timed(prefect.set_flow_run_state, known.id, Running(), force=True)
            run = self.timed(mlflow.create_run, experiment_id()).info.run_id
            made = ArtifactCreate(key=f"bench-{self.number}", type="progress", data=0.0, flow_run_id=known.id)
            progress = self.timed(prefect.create_artifact, made)
            step = 0
            while (began := time.monotonic()) < self.deadline:
                step += 1
                stamp = int(time.time() * 1000)
                self.timed(mlflow.log_batch, run, metrics=[Metric(f"m{i}", 1.0, stamp, step) for i in range(20)])
                lines = [
                    LogCreate(name="b", level=20, message=f"{step}", timestamp=now("UTC"), flow_run_id=known.id)
                    for _ in range(20)
                ]
                self.timed(prefect.create_logs, lines)
                self.timed(prefect.update_artifact, progress.id, ArtifactUpdate(data=float(step)))
                time.sleep(max(0.0, 1 - (time.monotonic() - began)))
            self.timed(mlflow.set_terminated, run)
            self.timed(prefect.set_flow_run_state, known.id, Completed(), force=True)


def run():
    from cluster.home import MLFLOW_PASSWORD, USER, prefect_login, secret_file
    from cluster.services import databases
    from cluster.services.processes import Running, mlflow
    from flows.server import server
    from tests.services import free_port

    profile = "postgres" if databases.ADDRESS in os.environ else "sqlite"
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"GPT2_HOME": str(Path(folder) / "home"), "PREFECT_HOME": str(Path(folder) / "home/prefect")}
        services = server(free_port(), profile), mlflow(free_port(), profile)
        os.environ |= {"PREFECT_API_URL": f"{services[0].address}/api", "PREFECT_API_AUTH_STRING": prefect_login()}
        os.environ |= {"MLFLOW_TRACKING_URI": services[1].address, "MLFLOW_TRACKING_USERNAME": USER}
        os.environ |= {"MLFLOW_TRACKING_PASSWORD": secret_file(MLFLOW_PASSWORD).read_text()}
        group = Running({}, {})
        try:
            for service in services:
                group.start(service)
            for service in services:
                group.wait(service.name, 240)
            print(f"{profile}, {SECONDS:g} s each\n\n| runs at a time | requests | failed | median (s) | slowest (s) |")
            print("|---|---|---|---|---|")
            for count in AT_ONCE:
                writers = [Writer(n, time.monotonic() + SECONDS) for n in range(count)]
                for writer in writers:
                    writer.start()
                for writer in writers:
                    writer.join()
                took, failed = [t for w in writers for t in w.took], [f for w in writers for f in w.failed]
                print(f"| {count} | {len(took)} | {len(failed)} | {statistics.median(took):.2f} | {max(took):.2f} |")
                if failed:
                    print(failed[0], file=sys.stderr)
                sys.stdout.flush()
        finally:
            group.stop()
