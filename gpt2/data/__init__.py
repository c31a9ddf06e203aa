"""Text in, batches of tokens out.

batches.py          the samples that each rank reads at each step; mixtures of new and old text
canaries.py         made-up secrets planted in the training text
config.py           `CorpusConfig`, `TokenizerConfig`, `CanaryConfig`
corpus.py           normalise documents, quarantine bad ones, drop exact duplicates
forms.py            compression, encoding, separator and quotes of a file; its lines, records, batches
near_duplicates.py  MinHash near-duplicates
readers.py          documents as streams, each with its place or its fault
samples.py          sample data out of published packages, verified; the hub's client, offline unless asked for
shards.py           token shards: written, and read as one stream
sources.py          files, folders, globs and addresses; what is left out; content ids
splits.py           the split of a text, by its content or by its time
tables.py           tables of .csv, .jsonl or .parquet: cells, rows, times
text.py             words in any script, unfinished texts, topics
tokenizer.py        byte-level BPE
"""
