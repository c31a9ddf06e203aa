"""Checkpoints on disk, and their copies.

checkpointer.py  `Checkpoints`: written aside, verified, sealed, renamed
distant.py       checkpoints of ranks that share no disk, through the store
files.py         a checkpoint on disk: verified, found, exported, discarded; copies at an fsspec address
"""
