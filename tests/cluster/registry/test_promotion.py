"""Whoever promotes, however many at once, whenever they are killed: the champion has passed the gate."""

import pytest

from cluster.home import home
from cluster.registry import download, promotion
from cluster.registry import versions as registry_versions
from cluster.registry.promotion import FORCED, PROMOTED, REFUSED, ROLLED_BACK, decide, promote, rollback
from cluster.registry.versions import by_alias, challenge, row, verdict_of
from cluster.tracking.runs import client
from gpt2.store.model_files import RefusedModel
from tests.cluster.promoters import candidates, measure, rounds
from tests.cluster.promoters import champion_of as champion


@pytest.fixture
def files_are_there(monkeypatch):
    """The versions of these tests have no files; who looks at them is `test_pulling.py`."""
    monkeypatch.setattr(download, "inspect", lambda version: None)


def database():
    return f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def fresh(version):
    return client().get_model_version(version.name, version.version)


def test_decisions_one_after_the_other(files_are_there):
    name = "gpt2-turns"
    versions = candidates(name, [0.6, 0.4, 0.7, 0.65])
    verdicts = [decide(name, v, measure).promote for v in versions]
    assert verdicts == [True, False, True, False]
    assert champion(name) == 3 and int(by_alias(name, "previous").version) == 1
    assert [verdict_of(fresh(v)) for v in versions] == ["promoted", "refused", "promoted", "refused"]
    assert "not worse than the champion" in row(fresh(versions[2]))["reasons"]
    assert "worse than the champion" in fresh(versions[3]).tags[REFUSED]


def test_there_and_back_again(files_are_there):
    name = "gpt2-back"
    versions = candidates(name, [0.6, 0.7, 0.8, 0.2])
    with pytest.raises(ValueError, match="no champion"):
        rollback(name)
    for version in versions[:3]:
        decide(name, version, measure)
    source, target = rollback(name, "strange answers")
    assert (int(source.version), int(target.version), champion(name)) == (3, 2, 2)
    assert "strange answers" in fresh(versions[2]).tags[ROLLED_BACK]
    assert int(by_alias(name, "previous").version) == 1
    rollback(name)
    assert champion(name) == 1 and by_alias(name, "previous") is None
    with pytest.raises(ValueError, match="no champion before it"):
        rollback(name)
    promote(name, "2")  # by hand: the way back is not to what was rolled back
    assert champion(name) == 2 and ROLLED_BACK not in fresh(versions[1]).tags
    rollback(name)
    assert champion(name) == 1
    with pytest.raises(ValueError, match="no champion before it"):
        rollback(name)


def test_an_operator_may_force_with_a_reason_that_is_kept(files_are_there):
    name = "gpt2-forced"
    versions = candidates(name, [0.6, 0.4, 0.9])
    decide(name, versions[0], measure)
    decide(name, versions[1], measure)
    with pytest.raises(ValueError, match=r"not better than the simple baseline.*--force"):
        promote(name, "2")
    with pytest.raises(ValueError, match="the gate has not judged it"):
        promote(name, "3")
    with pytest.raises(ValueError, match="needs a reason"):
        promote(name, "2", force=True)
    assert champion(name) == 1
    assert int(promote(name, "2", "the baseline's labels were wrong", force=True).version) == 1
    tags = fresh(versions[1]).tags
    assert champion(name) == 2 and "labels were wrong" in tags[FORCED] and "labels were wrong" in tags[PROMOTED]
    assert int(promote(name, "2").version) == 2  # it is
    with pytest.raises(ValueError, match="gpt2-forced"):
        promote(name, "17")


def test_no_promotion_of_damaged_files_and_no_rollback_to_them():
    name = "gpt2-damaged"
    [one, two] = candidates(name, [0.6, 0.7])
    decide(name, one, measure)
    decide(name, two, measure)
    with pytest.raises(RefusedModel):
        promote(name, "1")
    with pytest.raises(ValueError, match=r"to go back to: models:/gpt2-damaged/1 is refused"):
        rollback(name)
    assert champion(name) == 2


def test_a_version_that_was_refused_by_one_and_promoted_by_another_stands(files_are_there):
    [version] = candidates("gpt2-both", [0.6])
    promotion.tag(version, REFUSED, "worse than a champion of that moment")
    decide("gpt2-both", version, measure)
    assert verdict_of(fresh(version)) == "promoted" and registry_versions.judged(fresh(version))
    challenge("gpt2-both", version)


def test_the_best_of_two_at_once_stays(files_are_there):
    """Both pass against the same champion; the worse one moves last."""
    name = "gpt2-stale"
    versions = candidates(name, [0.6, 0.8, 0.7])
    decide(name, versions[0], measure)

    def measure_meanwhile(version):
        if int(version.version) == 3 and champion(name) == 1:
            decide(name, versions[1], measure)
        return measure(version)

    decide(name, versions[2], measure_meanwhile)
    assert champion(name) == 2 and int(by_alias(name, "previous").version) == 1


def test_eight_at_once_and_random_kills(files_are_there):
    assert -9 in rounds(database(), "gpt2-race", 1, True, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_eight_at_once_and_random_kills_often(files_are_there, seed):
    rounds(database(), "gpt2-races", 1, False, seed)
    codes = rounds(database(), "gpt2-kills", 4, True, seed)
    assert codes.count(-9) > 5 and set(codes) == {0, -9}
