"""The command `gpt2 train-classifier`: a file of labelled texts in, a registered model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
Changes = Annotated[list[str] | None, Parameter(name="--set", negative="")]


def train_classifier(
    source: str,
    *,
    name: str | None = None,
    preset: str | None = None,
    config: Path | None = None,
    set_: Changes = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
):
    """Make a model of a file of labelled texts: .csv, .jsonl or .parquet, columns text,label[,time,topic,weight].

    The champion of gpt2-base learns it; where there is none yet, one is pretrained first.

    Example: gpt2 train-classifier headlines.csv --set label_field=mood

    Args:
        source: the file.
        name: the registered model is gpt2-NAME; without it, named after the file.
        preset: settings to start from, as for `gpt2 run`.
        config: a YAML file of settings (`flows.classifier`).
        set_: a setting, as in label_field=mood or balance=inverse; may be given several times.
        dry_run: say what the file holds; start nothing.
    """
    from cluster.home import store
    from flows import early
    from flows.classifier import TASK, ClassifierConfig, name_of, pipeline_settings, plan_of, pretrained
    from flows.config import settings as job_settings
    from flows.plan import Plan, local_source
    from gpt2.labelled import usable

    chosen = job_settings(ClassifierConfig, {"source": source, "name": name, "preset": preset}, config, set_ or ())
    base = pretrained(chosen.base)
    settings = pipeline_settings(chosen, base)
    plan = plan_of(settings, base)
    table, labels, counts = usable(Path(local_source(source)), chosen)
    sizes = ", ".join(f"{label} {int((table['label'] == i).sum()):,}" for i, label in enumerate(labels))
    found = [c for c in ("time", "topic", "weight") if c in table]
    left_out = {what.replace("_", " "): n for what, n in counts.items() if n and what != "rows"}
    out.print(f"{source}: {len(table):,} texts to learn from, of {counts['rows']:,} rows: {sizes}", markup=False)
    out.print(f"Split by {'time' if 'time' in found else 'content'}; other columns: {', '.join(found) or 'none'}")
    if left_out:
        out.print(", ".join(f"{what} {n:,}" for what, n in left_out.items()))
    learner = f"gpt2-base version {base.version}" if base else f"a gpt2-base that is pretrained first ({chosen.preset})"
    out.print(f"It becomes a version of gpt2-{name_of(chosen)}, made from {learner}")
    if dry_run:
        return
    from flows.summary import model_table, registered_before

    def final() -> Plan | None:
        examples = store().find(plan.tasks[TASK].examples)
        return plan_of(pipeline_settings(chosen, base, examples.info["train"]), base) if examples else None

    done = final()
    rows = registered_before(done) if done else None
    if rows:
        out.print("Nothing to do: every stage was done before.")
    else:
        out.print("Starting Prefect, Ray and MLflow ...")
        early.start(settings)
        from flows.classifying import train_classifier as run

        rows, done = run(chosen)["registered"], final()
    assert done is not None
    out.print(model_table(done, rows))
    for row in rows:
        out.print(f"{row['model']} version {row['version']} {row['verdict']}: {row['reasons']}", markup=False)
    report = done.tasks[TASK].report
    out.print(f"Report, with the labels to look at: {store().require(report.kind, report.id).file('report.html')}")
    out.print(f"Use it: gpt2 predict models:/gpt2-{name_of(chosen)}@champion --input texts.txt --output scored.jsonl")
