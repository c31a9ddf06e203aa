"""A registered model made again in a fresh home, from the record kept with it, and compared bit by bit.

`python -m flows.jobs.reproduce` runs the stages up to the model in a process of its own, with the fresh home.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.home import samples
from cluster.orphans import ending_with_this_process
from cluster.process_env import configure, numerical_environment
from cluster.registry import download
from cluster.registry.lineage import PARENT
from flows.config import PipelineConfig, merged, validate
from flows.plan import make_plan
from flows.stages.provenance import IMPORT, NEEDED, RECORD, keys_of, with_base
from gpt2.evaluation.model_card import NAME as CARD
from gpt2.store.artifact import Store
from gpt2.store.code import code_version
from gpt2.store.model_files import Manifest, manifest

SERVERS = ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_UI_URL", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
SETTINGS = ("GPT2_STORE", *SERVERS)
"""Environment variables by which the new run would use the store and the servers of the old one."""


def reproduce(address: str, folder: Path | None, say: Callable[[str], None]) -> bool:
    """Make the model again in `folder`, a fresh home; return whether every file is the same, bit by bit.

    Raises `ValueError` if it can't be made again: the code differs, the data is missing or changed, or a training
    continued from the state of another one.
    """
    version = download.find(address)
    known = download.expected_files(version)
    recorded = with_base(json.loads(download.read_text(version, RECORD)), version)
    config, artifact = check(recorded, download.exact(version)), recorded["artifact"]
    if folder and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: is not empty; give a new folder, so that no old artifact is reused")
    fresh = (folder or Path(tempfile.mkdtemp(prefix="gpt2-reproduce-"))).absolute()
    fresh.mkdir(parents=True, exist_ok=True)
    say(f"Making {download.exact(version)} ({artifact['kind']}/{artifact['id']}) again in {fresh}")
    try:
        build(config, fresh)
        made = Store(fresh / "store").require(artifact["kind"], artifact["id"])
        return compare(known, manifest(made.path / "model"), recorded, say)
    finally:
        if folder is None:
            shutil.rmtree(fresh, ignore_errors=True)


def check(recorded: Mapping[str, Any], address: str) -> PipelineConfig:
    """Return the recorded settings; raises `ValueError` if they would not make the same artifact here and now."""
    if not isinstance(recorded, dict) or not recorded.keys() >= NEEDED:
        raise ValueError(f"{address} can't be made again: its {RECORD} is not a record of this program")
    name = recorded["model"]
    for asked in (recorded.get("asked"), recorded.get("base")):
        if asked and asked["flow"] == IMPORT:
            raise ValueError(
                f"{address} can't be made again: its base model was imported from {asked['config']['source']}; the "
                f"files are in its record with their sha256, and gpt2 import takes them again"
            )
    for stage in recorded["stages"]:
        if parent := stage["inputs"].get(PARENT):
            raise ValueError(
                f"{address} can't be made again: its '{stage['what']}' is a refresh, which continued from "
                f"{stage['kind']}/{parent}"
            )
    config = validate(merged(recorded["config"], {"cluster": {"checkpoint_url": None}}))  # no copies of checkpoints
    for path, (train, _) in config.trainings().items():
        if train.continue_from and path in ("pretrain", f"tasks.{name}.train"):
            raise ValueError(f"{address} can't be made again: {path} continued from the state of {train.continue_from}")
    try:
        plan = make_plan(config)
    except ValueError as error:
        raise ValueError(f"{address} can't be made again: its data is missing: {error}") from None
    stages = keys_of(name, plan)
    if len(stages) != len(recorded["stages"]):
        before = len(plan.sources) - len(stages) + len(recorded["stages"])
        raise ValueError(
            f"{address} can't be made again: its data has changed: corpus.sources held {before:,} files, now "
            f"{len(plan.sources):,}"
        )
    for then, (what, now) in zip(recorded["stages"], stages, strict=True):
        if then["id"] == now.id:
            continue
        if then["code"] != code_version(*now.code):
            commit = f"; check out {recorded['git.commit']}" if "git.commit" in recorded else ""
            raise ValueError(f"{address} can't be made again: the code of '{what}' has changed{commit}")
        changed = [i for i in now.inputs if then["inputs"].get(i) != now.inputs[i]]
        difference = (
            f"'{changed[0]}' of '{what}' is not the recorded one" if changed else f"'{what}' has other settings now"
        )
        raise ValueError(f"{address} can't be made again: its data has changed: {difference}")
    return config


def build(config: PipelineConfig, fresh: Path) -> None:
    """Run the stages up to the model in a process whose home is `fresh`; raises `ValueError` if it fails."""
    if samples().exists():  # published files, verified when they are used
        (fresh / "samples").symlink_to(samples(), target_is_directory=True)
    variables = {k: v for k, v in os.environ.items() if k not in SETTINGS} | {"GPT2_HOME": str(fresh)}
    done = subprocess.run(
        [sys.executable, "-m", "flows.jobs.reproduce"],
        input=config.model_dump_json(),
        text=True,
        env=variables,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"making the model again ended with exit code {done.returncode}; its log is above")


def compare(known: Manifest, made: Manifest, recorded: Mapping[str, Any], say: Callable[[str], None]) -> bool:
    """Report which files are the same; return whether all are."""
    same = True
    for file in sorted((known.keys() | made.keys()) - {CARD, RECORD}):
        equal = file in known and file in made and known[file] == made[file]
        same = same and equal
        say(f"  {'same' if equal else 'DIFFERENT':9} {file}")
    if same:
        say("Match: every file of the model is the same, bit by bit.")
        return True
    then, now = recorded["environment"], numerical_environment()
    others = [f"{k} {then.get(k)} then, {now[k]} now" for k in now if then.get(k) != now[k]]
    hint = "; ".join(others) or "the environment is the recorded one: on a GPU, sums may be added in another order"
    say(f"Mismatch: {hint}.")
    return False


def main() -> None:
    """Run the stages with the settings read from standard input, in the home that the environment names."""
    configure()
    config = validate(json.load(sys.stdin))
    from flows.runs import services

    services.start(config)
    from cluster.connect import disconnect
    from flows.pipeline import STORY
    from flows.runs.stage import without_tracebacks

    without_tracebacks()
    try:
        for stage in ("tokenize", "pretrain", *(["finetune"] if config.task_settings() else [])):
            STORY[stage](config)
    except ValueError as error:
        sys.exit(f"refused: {error}")
    finally:
        disconnect()


if __name__ == "__main__":
    with ending_with_this_process() as guard:
        guard.keep()
        main()
