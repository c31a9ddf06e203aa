"""What a person reads about a training's time."""

from flows.stages.training import describe, page
from gpt2.training.cost import Account, Restart


def test_the_page_says_when_why_and_what_it_cost():
    restart = Restart(1_700_000_000.0, "worker 1: its process died", 0.3, 9.0, 0.1, 2.0)
    lost = {"starting workers": 10.0, "restarting workers": 9.0, "steps done again": 2.0, "loading checkpoints": 0.01}
    text = page("base", Account(wall=100.0, lost=lost, restarts=[restart], bad_steps=2))
    assert "# base: goodput 79%" in text
    assert "| steps that count | 79.0 | 79% |" in text and "| starting workers | 10.0 | 10% |" in text
    assert "loading checkpoints" not in text  # nothing worth a line
    assert "| worker 1: its process died | 0.3 s | 9.0 s | 0.1 s | 2.0 s | 11.4 s |" in text
    assert "2 steps were left out" in text


def test_a_step_left_out_has_no_line_of_progress():
    assert describe("base", {"step": 3, "learning_rate": 0.1, "seconds_left": 1.0}) is None
    line = describe("base", {"step": 3, "loss": 1.5, "tokens_per_second": 1000.0, "seconds_left": 61.0})
    assert line == "base: step 3, loss 1.500, 1,000 tokens/s, 1:01 left"
