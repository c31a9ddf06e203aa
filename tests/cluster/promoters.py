"""Processes that promote versions of a model, all at once."""

from cluster import promotion
from cluster.tracking import client


def report(value):
    """A version of that quality beside a floor of 0.5."""
    return {
        "primary": {"name": "f1", "higher_is_better": True},
        "metrics": {"f1": value},
        "baselines": {"simple": {"f1": 0.5}},
        "floor": "simple",
    }


def measure(version):
    """The quality that the version's tag tells."""
    return report(float(version.tags["quality"]))


def candidates(name, qualities):
    """Versions without files: a promotion reads none."""
    client().create_registered_model(name)
    tags = [{"quality": str(q)} for q in qualities]
    return [client().create_model_version(name, f"file:///nowhere/{i}", tags=t) for i, t in enumerate(tags)]


def promoter(name, number, ready, go):
    """Decide on a version when the others do."""
    version = client().get_model_version(name, number)
    ready.release()
    go.wait()
    promotion.decide(name, version, measure)
