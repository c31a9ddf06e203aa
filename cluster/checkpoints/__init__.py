"""Checkpoints on disk, and their copies.

checkpointer.py  `Checkpoints`: written aside, verified, sealed, renamed
files.py         a checkpoint on disk: verified, found, exported, discarded; copies at an fsspec address
"""
