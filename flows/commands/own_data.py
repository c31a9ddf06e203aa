"""`gpt2 import`, `train-classifier` and `train-recommender`: files in, a registered model out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flows.commands.console import Changes, DryRun, out

if TYPE_CHECKING:
    from flows.jobs.own_data_plan import ClassifierConfig, OwnDataConfig, RecommenderConfig


def import_weights(
    source: str,
    *,
    revision: str | None = None,
    champion: Annotated[bool, Parameter(negative="")] = False,
    config: Path | None = None,
    set_: Changes = None,
):
    """Import published weights as a version of gpt2-base, for fine-tuning or for continued training on your own text.

    No code that comes with them is executed. The same files make no second version.

    Example: gpt2 import openai-community/gpt2 --champion

    Args:
        source: a directory with config.json, weights and tokenizer, or the id of a model on the Hugging Face hub.
        revision: the commit, branch or tag of a model on the hub.
        champion: make it the champion, even if the gate did not, or had no text to measure it on.
        config: a YAML file of settings (`flows.jobs.import_plan`).
        set_: a setting, as in online=false (the hub's local cache only); may be given several times.
    """
    from flows.config import settings
    from flows.jobs.import_plan import NAME, ImportConfig, ImportPlan

    given = {"source": source, "revision": revision, "champion": champion or None}
    chosen = settings(ImportConfig, given, config, set_ or ())
    weights = ImportPlan.of(chosen)
    size = f"{weights.model.n_parameters / 1e6:,.1f}M parameters, {weights.model.vocab_size:,} token ids"
    out.print(f"{weights.source}: a GPT-2 of {size}, {weights.model.n_positions:,} positions", markup=False)
    row = weights.registered()
    if row:
        out.print("Nothing to do: it was imported before.")
    else:
        from flows.commands.console import prefect

        out.print("Starting Prefect and MLflow ...")
        with prefect():
            from flows.jobs.import_weights import import_weights as run

            result = run(chosen)
        if result is None:  # another run is importing it, as the log says
            return
        [row] = result["registered"]
    from cluster.registry import versions

    at = versions.by_alias(NAME, versions.CHAMPION)
    mine = at is not None and int(at.version) == row["version"]
    why = f": {row['reasons']}" if row["reasons"] else f"; make it the champion: {chosen.command} --champion"
    out.print(f"{NAME} version {row['version']} {row['verdict']}{why}", markup=False)
    base = "" if mine else f" --set base=models:/{NAME}/{row['version']}"
    out.print(f"Fine-tune it:           gpt2 train-classifier FILE{base}", markup=False)
    if mine:
        n = weights.model.n_positions
        same = f"--set model.n_positions={n} --set pretrain.context={n}"
        out.print(f"Go on with your text:   gpt2 run refresh --set 'corpus.sources=[FOLDER]' {same}", markup=False)


def train_classifier(
    source: str,
    *,
    name: str | None = None,
    preset: str | None = None,
    config: Path | None = None,
    set_: Changes = None,
    dry_run: DryRun = False,
):
    """Train a model on labelled texts: .csv, .tsv, .jsonl or .parquet, columns text,label[,time,topic,weight].

    The champion of gpt2-base is fine-tuned; if there is none yet, one is pretrained first.

    Example: gpt2 train-classifier headlines.csv --set label_field=mood

    Args:
        source: the file, a folder, a glob or an fsspec URL of such files, or sample:clothing.
        name: the model is registered as gpt2-NAME; without it, NAME is made from the file's name.
        preset: settings to start from, as for `gpt2 run`.
        config: a YAML file of settings (`flows.jobs.own_data_plan`), such as the best.yaml of `gpt2 search sentiment`.
        set_: a setting, as in label_field=mood or balance=inverse; may be given several times.
        dry_run: print what the file has; start nothing.
    """
    from flows.config import settings
    from flows.jobs.own_data_plan import ClassifierConfig

    chosen = settings(ClassifierConfig, {"source": source, "name": name, "preset": preset}, config, set_ or ())
    learn(chosen, dry_run)


def train_recommender(
    items: str,
    interactions: str,
    *,
    name: str | None = None,
    preset: str | None = None,
    config: Path | None = None,
    set_: Changes = None,
    dry_run: DryRun = False,
):
    """Train a model on a catalogue: items (id,text[,title], attributes) and interactions (user,item,time[,weight]).

    Files are .csv, .tsv, .jsonl or .parquet. The champion of gpt2-base is fine-tuned; if there is none yet, one is
    pretrained first.

    Example: gpt2 train-recommender products.csv sales.csv --set user_field=customer

    Args:
        items: the file of items (or a folder, a glob, an fsspec URL); its other columns are attributes, which are added
            after the text.
        interactions: the file of users' choices with their times.
        name: the model is registered as gpt2-NAME; without it, NAME is made from the name of the file of items.
        preset: settings to start from, as for `gpt2 run`.
        config: a YAML file of settings (`flows.jobs.own_data_plan`), such as the best.yaml of `gpt2 search
            recommendation`.
        set_: a setting, as in weight_field=rating or min_weight=4; may be given several times.
        dry_run: print what the files have; start nothing.
    """
    from flows.config import settings
    from flows.jobs.own_data_plan import RecommenderConfig

    given = {"source": items, "interactions": interactions, "name": name, "preset": preset}
    learn(settings(RecommenderConfig, given, config, set_ or ()), dry_run)


def describe_labelled(chosen: ClassifierConfig) -> None:
    """Print what a file of labelled texts has: texts, labels, columns, and rows left out."""
    from flows.plan import local_source
    from gpt2.tasks.sentiment.dataset import usable

    table, labels, counts = usable(local_source(chosen.source), chosen)
    sizes = ", ".join(f"{label} {int((table['label'] == i).sum()):,}" for i, label in enumerate(labels))
    optional = [c for c in ("time", "topic", "weight") if c in table]
    out.print(f"{chosen.source}: {len(table):,} texts to learn from, of {counts['rows']:,} rows: {sizes}", markup=False)
    out.print(f"Split by {'time' if 'time' in optional else 'content'}; other columns: {', '.join(optional) or 'none'}")
    left_out({what: n for what, n in counts.items() if what != "rows"}, chosen.source)


def describe_catalogue(chosen: RecommenderConfig) -> None:
    """Print what a file of items and a file of interactions have: sizes, an example, and rows left out."""
    from gpt2.tasks.recommendation.catalogue import sentence, usable

    items, _, counts = usable(chosen.source, chosen)
    users, items_, interactions = (f"{counts.pop(what):,}" for what in ("users", "items", "interactions"))
    out.print(
        f"{items_} items of {chosen.source}, as: {sentence(items['title'][0], items['text'][0]):.200}", markup=False
    )
    out.print(f"{interactions} choices of {chosen.interactions} by {users} users to learn from", markup=False)
    left_out(counts, chosen.source, chosen.interactions)


def left_out(counts: dict[str, int], *sources: str) -> None:
    """Print the counts of rows, and of the sources' files, that are left out."""
    from gpt2.data import sources as data_sources

    if others := data_sources.left_out(sources):
        out.print(others, markup=False)
    if parts := [f"{what.replace('_', ' ')} {n:,}" for what, n in counts.items() if n]:
        out.print(", ".join(parts))


def learn(chosen: OwnDataConfig, dry_run: bool) -> None:
    """Print what the data have, train and register a model unless that is done, and print the results."""
    from cluster.home import store
    from flows.jobs.own_data_plan import ClassifierConfig, OwnDataPlan, RecommenderConfig
    from flows.runs import services

    own = OwnDataPlan.of(chosen)
    base, name = own.base, chosen.registered_as()
    rows = own.registered()  # refuses wrong settings before anything is read
    labelled = isinstance(chosen, ClassifierConfig)
    if isinstance(chosen, ClassifierConfig):
        describe_labelled(chosen)
    elif isinstance(chosen, RecommenderConfig):
        describe_catalogue(chosen)
    learner = f"gpt2-base version {base.version}" if base else f"a gpt2-base that is pretrained first ({chosen.preset})"
    out.print(f"It becomes a version of gpt2-{name}, made from {learner}")
    if dry_run:
        return
    from flows.commands.summary import address_of, model_table

    if rows:
        out.print("Nothing to do: every stage was done before.")
    else:
        out.print("Starting Prefect, Ray and MLflow ...")
        services.start(own.settings)
        from flows.jobs.own_data import train_classifier, train_recommender

        run = train_classifier if labelled else train_recommender
        rows = run(chosen)["registered"]
    done = own.complete()
    assert done is not None
    out.print(model_table(done.plan, rows))
    for row in rows:
        out.print(f"{row['model']} version {row['version']} {row['verdict']}: {row['reasons']}", markup=False)
    report = done.keys.report
    title = "Report, with the labels to look at" if labelled else "Report"
    out.print(f"{title}: {store().require(report.kind, report.id).file('report.html')}")
    inputs = "texts.txt" if labelled else "histories.jsonl"
    for row in rows:
        out.print(f"Use it: gpt2 predict {address_of(row)} --input {inputs} --output scored.jsonl", markup=False)
