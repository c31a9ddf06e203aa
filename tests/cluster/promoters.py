"""Processes that promote versions of a model, all at once."""

import multiprocessing
import random
import time

import sqlalchemy

from cluster.registry import promotion
from cluster.registry.versions import by_alias
from cluster.tracking.runs import Run, client

FLOOR, PROMOTERS = 0.5, 8
CHAMPION_NOW = """
select alias.version, quality.value, promoted.value from registered_model_aliases alias
left join model_version_tags quality on quality.name = alias.name and quality.version = alias.version
  and quality.key = 'quality'
left join model_version_tags promoted on promoted.name = alias.name and promoted.version = alias.version
  and promoted.key = 'gpt2.promoted'
where alias.name = :name and alias.alias = 'champion'
"""


def champion_of(name):
    found = by_alias(name, "champion")
    return found and int(found.version)


def report(value):
    """The report of a version of that quality."""
    return {
        "primary": {"name": "f1", "higher_is_better": True},
        "metrics": {"f1": value},
        "baselines": {"simple": {"f1": FLOOR}},
        "floor": "simple",
    }


def measure(version):
    """The quality that the version's tag tells."""
    return report(float(version.tags["quality"]))


def candidates(name, qualities):
    """Versions without files: a promotion reads none."""
    client().create_registered_model(name)
    run = Run.open(name, {"gpt2.test": name}).id
    found = []
    for quality in qualities:
        tags = {"quality": str(quality)}
        found.append(client().create_model_version(name, f"runs:/{run}/none", run_id=run, tags=tags))
    return found


def promoter(name, number, ready, go):
    """Decide on a version when the others do."""
    version = client().get_model_version(name, number)
    ready.release()
    go.wait()
    promotion.decide(name, version, measure)


def all_at_once(context, name, numbers, generator, kill, watch):
    """Promote in a process each; with `kill` each is killed at a time of its own. `watch` is called meanwhile."""
    ready, go = context.Semaphore(0), context.Event()
    processes = [context.Process(target=promoter, args=(name, n, ready, go)) for n in numbers]
    for process in processes:
        process.start()
    for _ in processes:
        assert ready.acquire(timeout=60)
    go.set()
    started = time.monotonic()
    deaths = {p: started + generator.uniform(0.0, 1.5) for p in processes if kill and generator.random() < 0.75}
    while any(p.is_alive() for p in processes):
        assert time.monotonic() - started < 120
        for process, death in deaths.items():
            if time.monotonic() > death:
                process.kill()
        watch()
        time.sleep(0.002)
    for process in processes:
        process.join()
    return [p.exitcode for p in processes]


def rounds(database, name, count, kill, seed):
    """Rounds of promoters in processes of their own, watched in MLflow's database, a SQLAlchemy URL;
    their exit codes.

    At every moment the champion has passed the gate; unless some were killed, it is the best in the end.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.cluster.promoters"])
    generator, survived = random.Random(seed), []
    client().search_registered_models()  # the first request makes the database
    rows, look = sqlalchemy.create_engine(database).connect(), sqlalchemy.text(CHAMPION_NOW)
    for number in range(count):
        qualities = [round(generator.uniform(0.4, 1.0), 3) for _ in range(PROMOTERS)]
        model = f"{name}-{seed}-{number}"
        versions = candidates(model, qualities)
        seen = set()

        def watch(model=model, seen=seen):
            for version, quality, promoted in rows.execute(look, {"name": model}):
                assert promoted is not None and float(quality) > FLOOR, (model, version, quality, promoted)
                seen.add(version)
            rows.rollback()  # or the next look would see the same moment again

        codes = all_at_once(context, model, [v.version for v in versions], generator, kill, watch)
        watch()
        survived += codes
        if not kill:
            assert codes == [0] * PROMOTERS
            assert champion_of(model) == 1 + qualities.index(max(qualities))
        if current := by_alias(model, "champion"):
            target, _ = promotion.before(current)
            assert target is None or promotion.PROMOTED in target.tags
            assert champion_of(model) in seen
        # Whoever comes after the dead finds everything in order.
        for version in versions:
            promotion.decide(model, client().get_model_version(model, version.version), measure)
        assert champion_of(model) == 1 + qualities.index(max(qualities))
    return survived
