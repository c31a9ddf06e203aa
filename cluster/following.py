"""The model at an address of the registry, followed: where the alias moves, the next one is loaded aside."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cluster.pulling import exact, find
from gpt2.loading import LoadedModel, load


class Follower(threading.Thread):
    """`current` is a loaded model at any time; it is replaced in one assignment, when the next one has answered.

    A version that is refused, or a registry that is away, changes nothing: it is told once, and `trouble` holds it.
    """

    def __init__(self, address: str, poll: float, say: Callable[[str], None]):
        """Load the model; `ValueError` where that fails. `poll`: seconds between looks at the alias, once started."""
        super().__init__(daemon=True, name="model-follower")
        self.address, self.poll, self.say = address, poll, say
        self.leave, self.trouble = threading.Event(), ""
        self.current = ready(exact(find(address)))

    def run(self) -> None:
        while not self.leave.wait(self.poll):
            self.look()

    def look(self) -> None:
        """Where does the alias point? Take what it points at."""
        try:
            newest = exact(find(self.address))
            if newest != self.current.address:
                before, self.current = self.current.address, ready(newest)
                self.say(f"{newest} answers now, instead of {before}")
            self.trouble = ""
        except Exception as error:  # whatever it is, the current model goes on answering
            if str(error) != self.trouble:
                self.say(f"{self.current.address} goes on answering: {error}")
            self.trouble = str(error)


def ready(address: str) -> LoadedModel:
    """The model, loaded, verified, and warm: it has answered once."""
    model = load(address)
    model.predict(list(model.predictor.input_example))
    return model
