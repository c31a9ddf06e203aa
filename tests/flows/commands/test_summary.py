"""What a command prints when it has finished."""

from flows.commands.summary import address_of, next_steps


def test_an_alias_is_named_only_where_it_exists(tmp_path, monkeypatch):
    """The gate may refuse a first version; then its model has no champion."""
    monkeypatch.setenv("GPT2_HOME", str(tmp_path))
    row = {"model": "gpt2-sentiment", "version": 1, "reasons": ""}
    assert address_of({**row, "verdict": "promoted"}) == "models:/gpt2-sentiment@champion"
    for verdict in ("refused", "not judged yet"):
        assert address_of({**row, "verdict": verdict}) == "models:/gpt2-sentiment/1"
        steps = next_steps([{**row, "verdict": verdict}])
        assert "models:/gpt2-sentiment/1" in steps and "gpt2-sentiment@" not in steps
