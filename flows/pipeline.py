"""The whole pipeline: text in, registered models out."""

from __future__ import annotations

import threading
import time
from typing import Any

from prefect import Flow, flow
from prefect.artifacts import create_table_artifact

from cluster.connect import disconnect
from flows.config import PipelineConfig, resolve
from flows.plan import expected, make_plan
from flows.runs.prefect_artifacts import add_to_name, called, named, places, show
from flows.runs.stage import parent_of_all, say
from flows.stages.evaluation import evaluate
from flows.stages.registration import register
from flows.stages.results import documents, publish, told
from flows.stages.tokenization import tokenize
from flows.stages.training import finetune, pretrain

STORY: dict[str, Flow] = {
    "tokenize": tokenize,
    "pretrain": pretrain,
    "finetune": finetune,
    "evaluate": evaluate,
    "register": register,
}


@flow(name="pipeline", flow_run_name=named(lambda config: called("pipeline", places(config.corpus.sources))))
def pipeline(config: PipelineConfig = resolve("laptop")) -> dict[str, Any]:
    """Text becomes token shards, a pretrained GPT-2, fine-tuned models, reports and registry versions.

    Args:
        config: all settings of the pipeline; start from a preset and change what you need.
    """
    seconds: dict[str, float] = {}
    results: dict[str, Any] = {}
    with parent_of_all() as run:
        if takes := expected(config, make_plan(config)):
            show(
                create_table_artifact, table=takes, key="expected", description="What this run will take, by past runs"
            )
        run.params(config.model_dump(mode="json"))
        run.facts(config.model_dump(mode="json"))
        for name, stage in STORY.items():
            started = time.monotonic()
            if name == "register":  # needs no Ray, so disconnect meanwhile
                leaving = threading.Thread(target=disconnect)
                leaving.start()
            results[name] = stage(config)
            seconds[name] = round(time.monotonic() - started, 1)
            for line in told(name, make_plan(config), results[name]):
                say(f"{len(seconds)} of {len(STORY)}, {name} ({seconds[name]:,.0f} s): {line}")
            if name == "tokenize":
                add_to_name(documents(make_plan(config)))
        publish(make_plan(config), results["register"])
        run.metrics({f"{name}_seconds": value for name, value in seconds.items()})
    return {"registered": results["register"], "mlflow_run": run.id}
