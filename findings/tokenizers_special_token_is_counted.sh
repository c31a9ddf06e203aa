#!/usr/bin/env bash
# tokenizers: a special token that stands in the training text is cut up, counted, and takes places in the vocabulary.
#
# Guess:    `BpeTrainer(special_tokens=["<|endoftext|>"])` knows the mark, so the mark in the texts is one unit and teaches
#           the merges nothing.
# Happens:  the trainer reads it as text. It is often the most frequent "word" of the corpus, so `<|`, `|>`, `endoftext` and
#           the steps to it become tokens first. Encoding then takes the mark as a whole, so none of them ever occurs.
# Matters:  places of the vocabulary are lost, and their rows of the embedding are never trained: whoever writes
#           "endoftext" in a prompt gives the model a token that it has never seen.
# Instead:  train the tokenizer on texts without the marks, and count, before the pretraining, which ids the encoded corpus
#           never has.
#
# Seen (tokenizers 0.23.3): 10 tokens are pieces of the mark and occur 0 times in the corpus; without the marks there are
# none; "endoftext" is one token, seen 0 times.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet tokenizers==0.23.3 2>"$work/pip.log" || { cat "$work/pip.log"; exit 1; }
cd "$work"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
cat >try.py <<'PY'
import random
from collections import Counter
from importlib.metadata import version

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

MARK = "<|endoftext|>"
rng = random.Random(0)
syllables = [first + vowel for first in "bcfghjklmnprstvz" for vowel in "aiu"]  # no e and no o: no word is like the mark
words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(2000)]
texts = [" ".join(rng.choices(words, [1 / (rank + 1) for rank in range(2000)], k=60)) for _ in range(1000)]


def trained(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[MARK], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pieces(tokenizer):
    """The tokens of more than one byte that are pieces of the mark."""
    return sorted(token for token in tokenizer.get_vocab() if len(token) > 1 and token in MARK and token != MARK)


marked = [text + MARK for text in texts]
tokenizer, clean = trained(marked), trained(texts)
seen = Counter(token for text in marked for token in tokenizer.encode(text).tokens)
lost = pieces(tokenizer)
prompt = tokenizer.encode("endoftext").tokens

print("versions:  tokenizers", version("tokenizers"))
print("guess:     a special token in the training text teaches the merges nothing")
print("behaviour: its pieces become tokens, and none of them ever occurs")
print(f"seen:      the mark as a whole occurs {seen[MARK]} times")
print(f"           {len(lost)} tokens are pieces of it, and occur {sum(seen[token] for token in lost)} times:", *lost)
print("           trained on the same texts without marks:", len(pieces(clean)))
print("           a prompt of 'endoftext' is", prompt, "- seen in the corpus", seen[prompt[0]], "times")
assert seen[MARK] == 1000 and len(lost) >= 9 and "endoftext" in lost, "changed: the mark is not counted"
assert not sum(seen[token] for token in lost) and not pieces(clean), "changed: the pieces occur"
assert prompt == ["endoftext"], "changed: the prompt"
PY
"$work/venv/bin/python" try.py
