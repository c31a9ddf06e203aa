"""Parts of the examples, beside brute force."""

import numpy as np

from gpt2.evaluation.unit_results import bins, choice_slices, text_slices


def test_texts_are_in_their_class_their_length_and_their_topics():
    texts = [f"{'@united ' if i % 3 == 0 else ''}{'word ' * (i % 50)}" for i in range(300)]
    classes = np.arange(300) % 2
    found = text_slices(texts, classes, ["bad", "good"])
    assert (found["class: good"] == (classes == 1)).all()
    lengths = {name: inside for name, inside in found.items() if name.startswith("words")}
    assert (sum(inside.astype(int) for inside in lengths.values()) == 1).all()
    assert [len(texts[i].split()) for i in np.flatnonzero(lengths["words: 6 to 10"])] == [
        n for n in (len(t.split()) for t in texts) if 6 <= n <= 10
    ]
    assert found["topic: @united"].sum() == 100 and len([n for n in found if n.startswith("topic")]) == 1


def test_bins_end_at_their_edges_and_empty_ones_are_left_out():
    found = bins("n", np.array([1, 5, 6, 2000]), (5, 10, 1000))
    assert {name: inside.tolist() for name, inside in found.items()} == {
        "n: up to 5": [True, True, False, False],
        "n: 6 to 10": [False, False, True, False],
        "n: over 1,000": [False, False, False, True],
    }


def test_cold_items_are_apart():
    found = choice_slices(np.array([3, 30, 300]), np.array([0, 4, 500]))
    assert found["item: never seen in training"].tolist() == [True, False, False]
    assert found["item chosen: up to 10"].tolist() == [False, True, False]
    assert found["history: over 200"].tolist() == [False, False, True]


def test_in_scripts_without_spaces_lengths_are_characters():
    texts = ["很好", "房间不错，服务也好。", "ดีมาก ๆ", "駅から近くて便利でした。", "good 很好很好 hotel"]
    found = text_slices(texts, np.zeros(5, int), ["any"])
    assert {name: inside.tolist() for name, inside in found.items() if name != "class: any"} == {
        "characters: up to 5": [True, False, True, False, False],
        "characters: 6 to 10": [False, True, False, False, True],
        "characters: 11 to 20": [False, False, False, True, False],
    }
