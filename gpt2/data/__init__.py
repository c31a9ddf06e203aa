"""Text in, batches of tokens out.

batches.py          the samples that each rank reads at each step; mixtures of new and old text
canaries.py         made-up secrets planted in the training text
config.py           `CorpusConfig`, `TokenizerConfig`, `CanaryConfig`
corpus.py           normalise documents, quarantine bad ones, drop exact duplicates
near_duplicates.py  MinHash near-duplicates
readers.py          documents as streams, each with its place or its fault; source files and their content ids
samples.py          sample data out of published packages, verified
shards.py           token shards: written, and read as one stream
splits.py           the split of a text, by its content or by its time
tables.py           a .csv, .jsonl or .parquet table: cells, rows, times
text.py             words in any script, unfinished texts, topics
tokenizer.py        byte-level BPE
"""
