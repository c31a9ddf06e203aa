"""Wrong labels that were planted in a file are what the report says to look at again."""

import numpy as np
import pandas as pd
import pytest
import torch

from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation.confidence import softmax
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.tasks.sentiment import report
from gpt2.tasks.task import task
from tests.gpt2.test_tasks import SUBJECTS, VERDICTS, trained

ROWS, SHARE = 1200, 0.06
LABELS = sorted(VERDICTS)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A file of texts, each with two words of its mood and perhaps one of the other; of 6 in 100 the label is wrong,
    whatever the split. The numbers of these rows, the examples, and a model that learned them, wrong ones included."""
    generator, folder = np.random.default_rng(3), tmp_path_factory.mktemp("planted")
    wrong, rows = generator.random(ROWS) < SHARE, []
    for number in range(ROWS):
        mood = int(generator.integers(2))
        words = [*generator.choice(VERDICTS[LABELS[mood]], 2), *generator.choice(SUBJECTS, 5)]
        words += list(generator.choice(VERDICTS[LABELS[1 - mood]], int(generator.random() < 0.3)))
        rows.append((" ".join(generator.permutation(words)), LABELS[mood ^ int(wrong[number])]))
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(folder / "posts.csv", index=False)
    kind = task("sentiment")
    kind.prepare(kind.Settings(label_field="label", ngrams=False), folder / "posts.csv", folder)
    torch.manual_seed(0)
    tokenizer = Tokenizer.train((text for text, _ in rows), 320)
    model = GPT2(ModelConfig(n_layer=1, n_head=2, n_embd=32, n_positions=64, vocab_size=320))
    module = trained(kind, model, folder, tokenizer, steps=60)
    (folder / "model").mkdir()
    kind.save(module, folder, tokenizer, 48, folder / "model")
    return {rows[number][0] for number in np.flatnonzero(wrong)}, folder, kind.predictor(folder / "model")


def found(planted, seen, probabilities):
    """(of the texts that are listed, how many have a wrong label; of those with one, how many are listed)."""
    told = report.table([("test", seen, probabilities)], LABELS)
    listed = [row[3] for row in told[report.HEADING]["rows"]]
    hits = sum(text in planted[0] for text in listed)
    return hits / len(listed), hits / min(len(listed), int(seen["text"].isin(planted[0]).sum()))


def test_planted_wrong_labels_are_found_far_above_chance(planted):
    wrong, folder, predictor = planted
    held_out = pd.concat([pd.read_parquet(folder / f"{split}.parquet") for split in ("validation", "test")])
    chance = held_out["text"].isin(wrong).mean()
    assert len(held_out) > 200 and 0.03 < chance < 0.1
    probabilities = softmax(predictor.logits(held_out["text"].tolist()), predictor.temperature)
    precision, recall = found(planted, held_out, probabilities)
    print(f"of {len(held_out)} texts {chance:.1%} have a wrong label; of those listed {precision:.0%}")
    assert precision > 0.7 and recall > 0.7
    assert precision > 8 * chance
    # What is said in another order, by chance, finds no more than there are.
    guessed = np.random.default_rng(0).permutation(probabilities)
    assert found(planted, held_out, guessed)[0] < 4 * chance


def test_each_row_is_told_as_it_is_in_the_file(planted):
    _, folder, predictor = planted
    test = pd.read_parquet(folder / "test.parquet")
    probabilities = predictor.probabilities(test["text"].tolist())
    rows = report.table([("test", test, probabilities)], LABELS)[report.HEADING]["rows"]
    file = pd.read_csv(folder / "posts.csv")
    losses = [float(row[0]) for row in rows]
    assert losses == sorted(losses, reverse=True) and len(rows) <= report.SHOWN
    for loss, given, told, text, place in rows:
        same = file[file["text"] == text].iloc[0]
        assert given == same["label"] and not told.startswith(given)
        assert place == f"test {test[test['text'] == text]['row'].iloc[0]}"
        chance = probabilities[test["text"].tolist().index(text), LABELS.index(given)]
        assert float(loss) == pytest.approx(-np.log(chance), abs=0.006)
