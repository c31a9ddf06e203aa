"""A champion on the examples of another run: read as it learned to read, and measured once."""

import json

import numpy as np
import pytest

from cluster.home import store
from cluster.registry import versions
from cluster.tracking.runs import Run
from flows.config import merged, validate
from flows.plan import make_plan
from flows.stages import gate, provenance
from gpt2.store.artifact import Artifact, Key
from tests.flows.jobs.test_refresh import Text, split_of
from tests.gpt2.tasks.base.test_cross_tokenizer import brute_force

NAME = "gpt2-base"


class Bases(Text):
    """Base models of the same text, by settings, and versions of them."""

    def made(self, changes):
        """(settings, plan, base) after one run."""
        self.config = validate(merged(self.config.model_dump(), changes))
        return self.config, make_plan(self.config), self.pretrained()

    def version(self, base, id=None, texts=None):
        """A version registered from the base; with an `id`, as in a home that has not made it."""
        artifact = Artifact(base.base.path, {"id": id or base.base.id, "kind": "base"})
        example = ["A film"]
        return versions.register(NAME, artifact, Run.open("register-base", {}), {}, example, {}, example, texts)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_changes):
    """A first run; one with more words in its vocabulary; one that reads fewer tokens at once."""
    bases = Bases(tmp_path_factory.mktemp("bases"), small_changes)
    first = bases.made({})
    more = bases.made({"tokenizer": {"vocab_size": first[0].tokenizer.vocab_size + 60}})
    shorter = bases.made({"pretrain": {"context": first[0].pretrain.context // 2}})
    return bases, first, more, shorter


def plain(plan, base):
    """The key of the report that the base's own run would make on the plan's tokens."""
    own = plan.pretrained.report
    return Key(own.kind, own.spec, {**own.inputs, "model": base.base.id}, own.code)


def test_who_reads_alike_keeps_its_report(runs, caplog):
    bases, (config, plan, base), *_ = runs
    version = bases.version(base)
    assert gate.reads(version, plan, config) is None
    assert plain(plan, base) == plan.pretrained.report
    content = {"metrics": {"bits_per_byte": 2.0}}
    own = plan.of("base").report
    made = store().make(own, lambda out: (out / "report.json").write_text(json.dumps(content)) and {})
    found = gate.report_of(version, "base", plan, config)
    assert found == {**content, "folder": str(made.path), "version": version.version}
    assert "measuring" not in caplog.text


def test_who_reads_otherwise_is_known(runs):
    bases, (config, plan, base), (more_config, more_plan, _), (short_config, short_plan, short) = runs
    context, version = config.pretrain.context, bases.version(base)
    assert gate.reads(version, more_plan, more_config) == context
    # Its own tokenizer is that of the tokens or not, it reads as many as it was trained at.
    assert gate.reads(bases.version(short), more_plan, more_config) == context // 2
    assert gate.reads(version, short_plan, short_config) == context
    # From another home: what it was trained at is in its record; without one, no more than its positions.
    record = {"config": config.model_dump(mode="json") | {"pretrain": {"context": 8}}}
    recorded = bases.version(base, "elsewhere", {provenance.RECORD: json.dumps(record)})
    assert gate.reads(recorded, plan, config) == 8
    unknown = bases.version(base, "older")
    assert gate.reads(unknown, plan, config) is None
    longer = validate(merged(config.model_dump(), {"model": {"n_positions": 512}, "pretrain": {"context": 512}}))
    assert gate.reads(unknown, make_plan(longer), longer) == config.model.n_positions


@pytest.mark.slow
def test_the_champion_is_measured_with_its_own_tokenizer_and_once(runs, caplog):
    """On real workers."""
    bases, (config, _, base), (more_config, more_plan, _), _ = runs
    assert plain(more_plan, base).id != more_plan.pretrained.report.id
    version = bases.version(base)
    found = gate.report_of(version, "base", more_plan, more_config)
    assert "measuring version" in caplog.text
    held_out = split_of(bases.first + bases.other)["validation"]
    nats = sum(n for rows in brute_force(base.base.path / "model", held_out, config.pretrain.context) for _, n in rows)
    size = sum(len(text.encode()) for text in held_out)
    assert found["metrics"]["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, rel=0.03)
    caplog.clear()
    assert store().find(plain(more_plan, base)) is None
    assert gate.report_of(version, "base", more_plan, more_config) == found
    assert "measuring version" not in caplog.text
