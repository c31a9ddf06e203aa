"""How a training ends before its time."""


class GaveUp(RuntimeError):
    """Training can't go on, and trying again would not help."""


class NotWritten(OSError):
    """A checkpoint could not be written; the one before is intact."""


class Preempted(RuntimeError):
    """Training was asked to stop; all that it did is in a checkpoint."""
