"""Topics in texts of every kind."""

from gpt2.data.text import topics_of


def test_topics_of_a_text():
    kinds = ["handles", "hashtags", "cashtags"]
    text = "@United lost it #Fail #1 $AAPL, $5 me@mail.com @united http://x.y/#frag &#39;"
    assert topics_of(text, kinds) == ["@united", "#fail", "$aapl"]
    assert topics_of(text, ["cashtags"]) == ["$aapl"]


def test_topics_are_handles_hashtags_and_cashtags():
    assert topics_of("@Delta lost $5 of $AAPL, mail me@home.org #Fail #fail ##x") == ["@delta", "$aapl", "#fail"]
    assert topics_of("nothing here, 3 @ 5") == []
