"""Plan a pipeline: every artifact's key follows from the settings and the sources alone, before any run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.home import samples, store
from flows.config import InvalidConfig, PipelineConfig
from flows.stage_code import stage_code, task_code
from gpt2.data import samples as data_samples
from gpt2.data.config import CanaryConfig
from gpt2.data.sources import expand, source_id
from gpt2.model.config import ModelConfig
from gpt2.settings import Settings
from gpt2.store.artifact import Artifact, Key, Store, digest
from gpt2.tasks.base.kind import BASE
from gpt2.tasks.task import registered_name
from gpt2.training import cost

NOT_OF_EXAMPLES = ("enabled", "source", "train", "adaptation", "distil")
"""Settings of a task that concern training alone."""
STAGES = ("tokenize", "pretrain", "finetune", "evaluate")


@dataclass(frozen=True)
class ExistingKey(Key):
    """The key of an artifact that is there: its id is not computed anew, its code may be of an earlier version."""

    known: str = ""

    @property
    def id(self) -> str:
        return self.known


@dataclass(frozen=True)
class ModelKeys:
    """The artifacts of a model: the base, or a task's."""

    model: Key
    report: Key
    contamination: Key
    data: Key
    """The data that it is trained and measured on: the tokens, or a task's examples."""
    registered: str
    """The registry's name for the model."""
    teacher: str | None = None
    """The id of the artifact that teaches."""


@dataclass(frozen=True)
class Plan:
    """The keys of all artifacts of a pipeline."""

    sources: tuple[str, ...]
    documents: tuple[Key, ...]
    corpus: Key
    tokenizer: Key
    tokens: Key
    pretrained: ModelKeys
    tasks: dict[str, ModelKeys]
    tags: Mapping[str, str] = field(default_factory=dict)
    """Further tags of the registered versions, about their origin."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """For flows other than the pipeline: the requested `flow` and its `config`, from which these settings follow."""

    @property
    def base(self) -> Key:
        """The pretrained model."""
        return self.pretrained.model

    @property
    def models(self) -> dict[str, ModelKeys]:
        """The keys of each model by its kind, the base's first."""
        return {BASE.name: self.pretrained, **self.tasks}

    def of(self, name: str) -> ModelKeys:
        """Return the keys of the model of a kind: `base`, or a task."""
        return self.models[name]

    def reports(self) -> dict[str, Key]:
        """The report of each model by the registry's name for it."""
        return {keys.registered: keys.report for keys in self.models.values()}

    def by_stage(self) -> Iterator[tuple[str, str, Key]]:
        """(stage, what, key) in order."""
        for path, key in zip(self.sources, self.documents, strict=True):
            yield "tokenize", f"documents of {Path(path).name}", key
        yield "tokenize", "corpus", self.corpus
        yield "tokenize", "tokenizer", self.tokenizer
        yield "tokenize", "tokens", self.tokens
        yield "pretrain", "base model", self.base
        for name, keys in self.tasks.items():
            yield "finetune", f"{name} examples", keys.data
            yield "finetune", f"{name} model", keys.model
        for name, keys in self.models.items():
            yield "evaluate", f"{name} contamination", keys.contamination
            yield "evaluate", f"{name} report", keys.report


def expected(config: PipelineConfig, plan: Plan) -> list[dict[str, Any]]:
    """Return what each artifact that is not there yet is expected to take on this machine: stage, result, seconds, and
    for trainings tokens, joules and cost; from those of its kind that were made here. Unknown figures are left out."""
    rows = []
    for stage, what, key, done in stages_done(plan, store()):
        if done:
            continue
        train = config.pretrain if key.kind == BASE.name else None
        if train is None and key.kind in plan.tasks:
            train = config.task_settings()[key.kind].train
        samples = train.steps * train.batch_size * train.context if train and train.steps else None
        past, size = [], 1.0
        for artifact in made_before(key.kind):
            theirs = artifact.manifest["spec"].get("train", {})
            facts = {**artifact.info}
            if "steps" in facts:
                facts["samples"] = facts["steps"] * theirs["batch_size"] * theirs["context"]
            past.append(facts)
        if past and train and key.kind == BASE.name:
            [before, *_] = made_before(key.kind)
            shape, context = before.manifest["spec"]["model"], before.manifest["spec"]["train"]["context"]
            theirs = ModelConfig.model_validate(shape).flops_per_token(context)
            size = config.model_config_with_vocabulary().flops_per_token(train.context) / theirs
        rows.append({"stage": stage, "result": what, **cost.expected(past, samples, size)})
    return rows


def made_before(kind: str) -> list[Artifact]:
    """Return the artifacts of a kind that were made on this machine, newest first."""
    folder = store().root / kind
    ids = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    made = [artifact for id in ids if (artifact := store().get(kind, id)) and "seconds" in artifact.info]
    return sorted(made, key=lambda artifact: artifact.manifest["created"], reverse=True)


def make_plan(config: PipelineConfig) -> Plan:
    """The plan of a pipeline; `InvalidConfig` where a source is missing or can't be read. Fetches nothing."""
    sources, documents = document_keys(config)
    corpus = Key("corpus", {}, {f"{i:06d}": key.id for i, key in enumerate(documents)}, stage_code("deduplicate"))
    tokenizer = tokenizer_key(config, corpus)
    spec = {"dtype": config.tokenizer.dtype, "validation_share": config.corpus.validation_share}
    code = stage_code("encode")
    if config.canaries.count:  # without any, the tokens are those of before there were canaries
        spec, code = {**spec, "canaries": config.canaries.identity()}, stage_code("encode", "plant canaries")
    tokens = Key("tokens", spec, {"corpus": corpus.id, "tokenizer": tokenizer.id}, code)
    model = config.model_config_with_vocabulary()
    base = Key(
        "base",
        {"model": model.identity(), "train": config.pretrain.identity(), **config.cluster.changing()},
        {"tokens": tokens.id, "tokenizer": tokenizer.id},
        stage_code("train"),
    )
    pretrained = base_keys(base, tokens, config.canaries, config.evaluated_tokens())
    tasks = {name: task_keys(name, config, base, tokenizer, tokens) for name in config.task_settings()}
    return Plan(sources, documents, corpus, tokenizer, tokens, pretrained, tasks)


MAX_TOKENS = "max_tokens"
"""Key in the spec of a base model's report: the most held-out tokens that it is measured on."""


def base_keys(base: Key, tokens: Key, canaries: CanaryConfig, most: int, **others: str) -> ModelKeys:
    """Return the keys of a pretrained model; its report is on at most `most` held-out tokens, and has what it knows of
    the `canaries`, and `others` as further inputs."""
    searched = Key("base-contamination", {}, {"tokens": tokens.id}, stage_code("search for contamination"))
    inputs = {**others, "model": base.id, "tokens": tokens.id, "contamination": searched.id}
    code = stage_code("report", "report base", *(["measure exposure"] if canaries.count else []))
    return ModelKeys(
        base, Key("base-report", {MAX_TOKENS: most}, inputs, code), searched, tokens, registered_name(BASE.name)
    )


def document_keys(config: PipelineConfig) -> tuple[tuple[str, ...], tuple[Key, ...]]:
    """The source files, and the cleaned documents of each, which follow from the file's content."""
    sources = tuple(expand_all(config.corpus.sources))
    cleaning = without(config.corpus, "sources", "validation_share", "max_bad_share")
    return sources, tuple(Key("documents", cleaning, {"source": source_id(s)}, stage_code("clean")) for s in sources)


def tokenizer_key(config: PipelineConfig, corpus: Key) -> Key:
    if config.tokenizer.kind == "gpt2":
        return Key(
            "tokenizer", {"kind": "gpt2"}, {"source": data_samples.identity("gpt2-bpe")}, stage_code("learn tokenizer")
        )
    spec = {**without(config.tokenizer, "token_dtype"), "validation_share": config.corpus.validation_share}
    return Key("tokenizer", spec, {"corpus": corpus.id}, stage_code("learn tokenizer"))


def task_keys(name: str, config: PipelineConfig, base: Key, tokenizer: Key, tokens: Key) -> ModelKeys:
    settings = config.task_settings()[name]
    read = {}
    for what, source in settings.sources().items():
        try:
            read[what] = source_id(source)
        except ValueError as error:
            raise InvalidConfig(f"tasks.{name}.{what}: {error}") from None
    registered = registered_name(settings.register_as or name)
    examples = Key(f"{name}-examples", without(settings, *NOT_OF_EXAMPLES), read, task_code(name, "examples"))
    spec = {"train": settings.train.identity(), "adaptation": settings.adaptation.identity()}
    spec |= config.cluster.changing()
    inputs = {"base": base.id, "examples": examples.id, "tokenizer": tokenizer.id}
    stages, teacher = ["train"], None
    if distil := getattr(settings, "distil", None):
        teacher = teacher_id(name, distil.teacher, registered)
        spec |= {"distil": without(distil, "teacher")}
        inputs["teacher"] = teacher
        stages.append("distil")
    model = Key(name, spec, inputs, task_code(name, "model", *stages))
    both = {"tokens": tokens.id, "examples": examples.id}
    searched = Key(f"{name}-contamination", {}, both, task_code(name, "examples", "search for contamination"))
    inputs = {"model": model.id, "examples": examples.id, "contamination": searched.id}
    report = Key(f"{name}-report", {}, inputs, task_code(name, "report", "report"))
    return ModelKeys(model, report, searched, examples, registered, teacher)


def teacher_id(name: str, teacher: str, registered: str) -> str:
    """The id of the artifact that teaches a task: of the model's own name or the task's; `InvalidConfig` where the
    registry has none."""
    if not teacher.startswith("models:/"):
        return teacher
    from cluster.registry.versions import artifact_id  # loads MLflow

    try:
        own = teacher.startswith((f"models:/{registered}@", f"models:/{registered}/"))
        return artifact_id(teacher, registered if own else registered_name(name))
    except ValueError as error:
        raise InvalidConfig(f"tasks.{name}.distil.teacher: {error}") from None


def expand_all(sources: list[str]) -> list[str]:
    """Files of all sources; samples stay names."""
    expanded: list[str] = []
    for source in sources:
        try:
            expanded += [source] if source.startswith("sample:") else expand([source])
            if source.startswith("sample:"):
                data_samples.identity(source.removeprefix("sample:"))
        except ValueError as error:
            raise InvalidConfig(f"corpus.sources: {error}") from None
    return expanded


def absolute_place(place: str) -> str:
    """Return the absolute path of a file or folder; addresses and samples are returned unchanged."""
    return place if ":" in place else str(Path(place).absolute())


def local_source(source: str) -> str:
    """Return the path of a source; a sample is fetched first if it is absent."""
    return data_samples.resolve(source, samples())


def without(settings: Settings, *names: str) -> dict:
    return {k: v for k, v in settings.identity().items() if k not in names}


def stages_done(plan: Plan, store: Store) -> list[tuple[str, str, Key, bool]]:
    """Return (stage, what, key, done) of every artifact."""
    return [(stage, what, key, store.find(key) is not None) for stage, what, key in plan.by_stage()]


def registered_before(plan: Plan) -> list[dict[str, Any]] | None:
    """Return the registry's rows if all artifacts of the plan are made, registered, judged and announced, else None.
    Starts nothing."""
    if not all(done for *_, done in stages_done(plan, store())):
        return None
    from cluster.registry import versions as registry_versions  # imports MLflow, so only if all is made

    keys = {keys.registered: keys.model for keys in plan.models.values()}
    matching = [registry_versions.by_artifact(name, key.id) for name, key in keys.items()]
    done = (registry_versions.judged, registry_versions.announced)
    versions = [version for version in matching if version and all(is_done(version) for is_done in done)]
    return [registry_versions.row(version) for version in versions] if len(versions) == len(keys) else None


def run_identity(stage: str, plan: Plan) -> str:
    """Return an id that is the same for runs of a stage that would make the same artifacts."""
    return digest([stage, *(key.id for _, _, key in plan.by_stage())])[:16]


def task_identity(name: str, plan: Plan) -> str:
    """Return an id that is the same for runs in which a task learns the same examples for the same registered model."""
    keys = plan.tasks[name]
    return f"{name}-{digest([keys.registered, keys.data.id])[:16]}"
