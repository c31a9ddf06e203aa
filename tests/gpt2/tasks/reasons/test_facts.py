"""Reasons: facts that are true, and checks that nothing false or odd passes."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.text import words
from gpt2.tasks.reasons.checks import Checks, KnownTexts, Written, place_of, repeats, spoken_title, well_formed
from gpt2.tasks.recommendation.catalogue import attributes, facts, named_in

TITLES = ["Godfather, The (1972)", "Toy Story (1995)", "Secret Garden, The (1993)", "Speed (1994)"]
COMMON = """this the film a is it and of in that has its very with good great story funny touching drama dramas comedy
comedies plot nobody who saw will ever forget knows boring love one best among way i'd say what i've hoped for
about crime secret garden pacino at his 10 toy story as so x al 7 they"""
TEXTS = ["Crime, Drama", "Comedy; studio: Acme", "Drama, Comedy; studio: Acme", "a text of many words, Crime, Rare"]


@pytest.fixture(scope="module")
def checks():
    known = KnownTexts(["This film has a plot that nobody who saw it will ever forget."])
    return Checks(
        TITLES, attributes(TEXTS), known, {"boring"}, set(words(COMMON)), place_of(["this film", "the film"]), 8, 50.0
    )


@pytest.mark.parametrize(
    ("title", "spoken"),
    [
        ("Godfather, The (1972)", "The Godfather"),
        ("Postino, Il (1994)", "Il Postino"),
        ("Eau, L' (1990)", "L'Eau"),
        ("City, The (Cite, La) (1995)", "The City (Cite, La)"),
        ("Good, the Bad and the Ugly, The (1966)", "The Good, the Bad and the Ugly"),
        ("2001 (two parts)", "2001 (two parts)"),
        ("Blue shoes, size 42", "Blue shoes, size 42"),
    ],
)
def test_titles_as_one_says_them(title, spoken):
    assert spoken_title(title) == spoken


def test_attributes_are_what_several_items_have():
    assert attributes(TEXTS) == [
        {("crime",): "Crime", ("drama",): "Drama"},
        {("comedy",): "Comedy", ("acme",): "studio: Acme"},
        {("drama",): "Drama", ("comedy",): "Comedy", ("acme",): "studio: Acme"},
        {("crime",): "Crime"},
    ]
    known = {("crime",), ("comedy",), ("sci", "fi")}
    assert named_in("Of all comedies, crimes and Sci-Fis", known) == known
    assert named_in("criminal sci", known) == set()


def test_facts_are_true_of_all_that_they_name():
    of = attributes(TEXTS)
    assert facts(TITLES, of, [1], 2).endswith("model: Toy Story (1995); in common: Comedy, studio: Acme.")
    assert facts(TITLES, of, [1, 0], 2).endswith("model: Toy Story (1995) and Godfather, The (1972).")
    assert facts(TITLES, of, [], 2).startswith("Ranked by popularity alone")


def test_a_good_sentence_is_shown_with_the_title(checks):
    good = Written("The film is a funny and touching drama.", True, 20.0)
    assert checks.withheld(good, 0, [2]) == "" and checks.sentence(good.text, 0) == (
        "The Godfather is a funny and touching drama."
    )
    assert checks.sentence("This film is the film of films.", 1) == "Toy Story is the film of films."
    assert checks.sentence("I love this film.", 1) == "I love this film."  # withheld: see below
    standing = place_of(["it|is a", "this"])
    found = [bool(standing.match(text)) for text in ("It is a film", "It is all", "This film", "This-film", "Thisfilm")]
    assert found == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("This film is good.", "it is too short"),
        (f"This film is {'very, ' * 30} good.", "it is no sentence"),
        ("This film is a great and", "it is no sentence"),
        ("this film is a funny drama.", "it is no sentence"),
        ("This film is great. It is a drama.", "it is no sentence"),
        ("It is a funny and touching drama.", "it does not name the item"),
        ("I love the film and its touching drama.", "it does not name the item"),
        ("This film is a very very touching drama.", "it repeats itself"),
        ("This film is a drama, is a drama, is a drama.", "it repeats itself"),
        ("This film has Pacino at his best.", "it names somebody, something else or a number"),
        ("This film is among the 10 best dramas.", "it names somebody, something else or a number"),
        ("This film is as good as toy story.", "it names somebody, something else or a number"),
        ("This film is boring in a touching way.", "it has an unwanted word"),
        ("This film is one of the funny comedies.", "it says what the item is not"),
        ("This film is a funny but tragic drama.", "it has a rare word"),
        ("This film is a funny and touching story.", "it does not say why"),
        ("This film is a great story of crime.", "it does not say why"),
        ("This drama has a plot that nobody who saw it knows.", "it does not name the item"),
        ("This film has a plot that nobody who saw it knows, a drama.", "it is copied"),
    ],
)
def test_what_is_withheld_and_why(checks, text, why):
    assert checks.withheld(Written(text, True, 20.0), 0, [2]) == why


def test_a_sentence_needs_an_end_and_likelihood(checks):
    text = "The film is a funny and touching drama."
    assert checks.withheld(Written(text, False, 20.0), 0, [2]) == "it has no end"
    for perplexity in (50.1, float("inf"), float("nan")):
        assert checks.withheld(Written(text, True, perplexity), 0, [2]) == "it is unlikely"
    own = Written("The film is a comedy about a secret garden.", True, 20.0)  # the words of its title
    assert checks.withheld(own, 2, [1]) == ""
    assert checks.withheld(Written("This film is, I'd say, what a drama has.", True, 20.0), 0, [2]) == ""


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=9))
def test_repetition_is_what_comparing_all_pairs_finds(run):
    twice = any(run[i] == run[i + 1] for i in range(len(run) - 1))
    again = any(run[i : i + 3] == run[j : j + 3] for i in range(len(run) - 2) for j in range(i + 1, len(run) - 2))
    assert repeats(run) == (twice or again)


PIECES = [
    "This film",
    "the film",
    "is",
    "a drama",
    "Comedy",
    "boring",
    "Al",
    "7",
    ".",
    "!",
    '"',
    "\n",
    "�",
    " ",
    "so",
    "x,",
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14), st.sampled_from([" ", ""]), st.integers(0, 3))
def test_whatever_is_shown_is_one_sentence_that_names_the_item(checks, pieces, between, item):
    text = between.join(pieces)
    if checks.withheld(Written(text, True, 1.0), item, [2]):
        return
    shown = checks.sentence(text, item)
    assert spoken_title(TITLES[item]) in shown and well_formed(text) and 5 <= len(words(text)) <= 30
    assert not re.search(r'[\d"\n\ufffd]|boring|Al', text)
    assert "omedy" not in text or item in (1, 2)
    assert ("omedy" in text and item in (1, 2)) or ("drama" in text and item in (0, 2))
    assert not re.search(r"[.!?] ", text)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60), st.text(max_size=30))
def test_any_text_gets_an_answer(checks, text, title):
    assert isinstance(checks.withheld(Written(text, True, 1.0), 0, [2]), str)
    spoken_title(title), attributes([title, title])
