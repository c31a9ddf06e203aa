"""What a training took, against sums by hand."""

import pytest
from pydantic import ValidationError

from gpt2.training.config import BudgetConfig
from gpt2.training.cost import cost, expected


def sample(who, pid, time, used, **more):
    cpus = 0 if who == "driver" else 2
    return {"who": who, "pid": pid, "node": "n", "time": time, "cpu_seconds": used, "cpus": cpus, "gpus": 0, **more}


USAGE = [
    sample("driver", 1, 0, 5),
    sample("rank0", 2, 10, 1.0, machine_joules=100.0),
    sample("rank1", 3, 10, 1.0, machine_joules=100.0),
    sample("driver", 1, 100, 50),
    sample("rank0", 2, 70, 91.0, machine_joules=700.0),
    sample("rank1", 3, 40, 31.0, machine_joules=400.0),  # killed
    sample("rank1", 4, 50, 0.5, machine_joules=500.0),  # its successor
    sample("rank1", 4, 80, 30.5, machine_joules=3.0),  # the counter began again
]


def test_attempts_add_up_and_a_machine_counts_once():
    journal = [{"step": 1, "tokens": 100.0}, {"step": 1, "validation_loss": 1.0}, {"step": 2, "tokens": 50.0}]
    took = cost(USAGE, journal, BudgetConfig(price_per_cpu_hour=0.6))
    assert took.cpu_seconds == 2 * (60 + 30 + 30)
    assert took.used_cpu_seconds == 90 + 30 + 30
    assert took.tokens == 150
    assert took.joules == 600
    assert took.money == pytest.approx(240 * 0.6 / 3600)
    assert str(took) == "240 CPU seconds reserved, 150 used, 150 tokens, 0.2 Wh, 0.04 EUR"


def test_what_can_not_be_known_is_absent():
    usage = [{k: v for k, v in s.items() if k != "machine_joules"} for s in USAGE]
    took = cost(usage, [], BudgetConfig())
    assert "energy can't be read here" in str(took)
    assert "joules" not in took.metrics() and "cost" not in took.metrics()


def test_a_limit_of_money_needs_a_price():
    with pytest.raises(ValidationError, match="max_cost=1 needs a price; set price_per_cpu_hour"):
        BudgetConfig(max_cost=1)


def test_a_training_is_expected_to_take_its_start_and_the_past_time_of_a_token():
    last = {
        "seconds": 50.0, "tokens": 8000, "samples": 10000, "steps": 10, "tokens_per_second": 200.0, "joules": 100.0
    }  # fmt: skip
    found = expected([last], 20000)
    assert found == {"seconds": 10 + 80, "tokens": 16000, "joules": 200.0}  # 10 s of its 50 were not computing
    assert expected([last], 10000, size=3.0)["seconds"] == 10 + 120
    assert expected([last], None) == {"seconds": 50.0}  # how long it will be is not known


def test_other_work_is_expected_to_take_what_it_took_and_the_unknown_is_not_made_up():
    assert expected([{"seconds": s} for s in (9, 1, 2, 100, 3, 500)], None) == {"seconds": 3}
    assert expected([], 100) == {}
