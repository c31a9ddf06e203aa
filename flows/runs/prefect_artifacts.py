"""What Prefect shows of a flow run: progress and loss of a training under way, reports, results, links, and its name.

The name has the job, its settings and the data that it works on; it is never a random one.

Prefect's page shows images in Markdown only as `data:` addresses. It draws no Mermaid, and its image artifact prints
the whole address.
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import httpx
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.runs.services import say_alive
from gpt2.training.journal import EVENTS, JOURNAL, read_journal

PATIENCE = 600.0
"""Seconds that a run waits for a Prefect server that does not answer; then it goes on without what it asked for."""
PROGRESS_EVERY, CURVE_EVERY, ALIVE_EVERY = 3.0, 30.0, 30.0
"""Seconds between two updates of the progress bar, of the curve, and of the state of a run marked as crashed."""
LEAVING = 10.0
"""Seconds that a training's end waits for the last update."""
AWAY = (httpx.TransportError, PrefectHTTPStatusError)
T = TypeVar("T")

_drawing = threading.Lock()  # pyplot is not thread-safe


def slug(name: str) -> str:
    """Return a name as an artifact's key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9-]", "-", name.lower())


def show(create: Callable[..., Any], **facts: Any) -> Any:
    """Create an artifact and return it; log a warning and return None if Prefect does not answer for long."""
    try:
        return patiently(lambda: create(**facts))
    except AWAY as error:
        get_logger("gpt2").warning("%s is not shown in Prefect: %s", facts.get("key"), error)
        return None


def patiently(ask: Callable[[], T]) -> T:
    """Return what Prefect answers, waiting for a server that is away. Raises `AWAY` if it refuses, or stays away."""
    started = time.monotonic()
    while True:
        try:
            with impatient():
                return ask()
        except AWAY as error:
            refused = isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500
            if refused or time.monotonic() - started > PATIENCE:
                raise
            time.sleep(5)


def impatient() -> contextlib.AbstractContextManager[Any]:
    """Let Prefect's client try only once. Its pauses double up to four minutes, too long to wait for a page."""
    return temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})


def image(path: Path, title: str) -> str:
    """Return a PNG as Markdown with a `data:` address."""
    return f"![{title}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"


def draw(journal: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Draw the loss so far as a PNG in the folder; return its path."""
    from gpt2.evaluation import plots

    with _drawing:
        return folder / plots.curve(journal, folder)["file"]


def curve(name: str, journal: Sequence[Mapping[str, Any]]) -> str:
    """Return the loss so far as Markdown with a figure."""
    last = max(r["step"] for r in journal)
    with tempfile.TemporaryDirectory() as folder:
        return f"# {name}: loss up to step {last}\n\n{image(draw(journal, Path(folder)), 'loss')}\n"


class Live:
    """Context around a training that updates a progress bar and a loss curve of the flow run as the journal grows.

    It works in its own thread, so a slow or absent Prefect server does not delay the training.
    """

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.bar: Any = None
        self.drawing: Any = None
        self.drawn = 0.0
        self.heard = time.monotonic()
        self.step = -1
        self.ended = threading.Event()
        context = contextvars.copy_context()  # that of the flow run, to which the artifacts belong
        self.thread = threading.Thread(target=context.run, args=(self._follow,), daemon=True, name="live")

    def __enter__(self) -> Live:
        import gpt2.evaluation.plots

        assert gpt2.evaluation.plots  # imported here, because concurrent imports may see partially initialised modules
        self.thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.ended.set()
        self.thread.join(LEAVING)

    def _follow(self) -> None:
        took = 0.0
        while not self.ended.wait(max(PROGRESS_EVERY, 30 * took)):  # a long journal takes longer to read
            began = time.thread_time()
            with contextlib.suppress(*AWAY), impatient():
                self._update()
                self._alive()
            took = time.thread_time() - began
        with contextlib.suppress(*AWAY), impatient():
            self._update(last=True)

    def _update(self, last: bool = False) -> None:
        journal = [r for r in read_journal(self.folder / JOURNAL) if "loss" in r or "validation_loss" in r]
        if not journal:
            return
        step = max(r["step"] for r in journal)
        if step != self.step or last:
            self._progress(step, journal)
            self.step = step
        if last or time.monotonic() - self.drawn > CURVE_EVERY:
            self._curve(journal)
            self.drawn = time.monotonic()

    def _alive(self) -> None:
        if time.monotonic() - self.heard > ALIVE_EVERY:
            say_alive()
            self.heard = time.monotonic()

    def _progress(self, step: int, journal: Sequence[Mapping[str, Any]]) -> None:
        total = next((e["total"] for e in reversed(read_journal(self.folder / EVENTS)) if "total" in e), step)
        latest: Mapping[str, Any] = next((r for r in reversed(journal) if "seconds_left" in r), {})
        text = f"{self.name}: step {step} of {total}"
        if latest:
            minutes, seconds = divmod(round(latest["seconds_left"]), 60)
            text += f", loss {latest['loss']:.3f}, {minutes}:{seconds:02d} left"
        share = 100 * min(1.0, step / max(total, 1))
        if self.bar is None:
            self.bar = create_progress_artifact(share, key=slug(f"progress-of-{self.name}"), description=text)
        else:
            update_progress_artifact(self.bar, share, text)

    def _curve(self, journal: Sequence[Mapping[str, Any]]) -> None:
        text = curve(self.name, journal)
        if self.drawing is None:
            self.drawing = create_markdown_artifact(
                text, key=slug(f"loss-of-{self.name}"), description=f"Loss of training {self.name}"
            )
        else:
            get_client(sync_client=True).update_artifact(self.drawing, ArtifactUpdate(data=text))


PARTS = " · "
"""Stands between the job and its data."""
SHOWN = 2
"""Sources that a name shows."""


def place(source: str) -> str:
    """Return the short name of a source: `reviews` of `sample:reviews`, `articles` of /data/articles/*.jsonl.gz."""
    path = PurePosixPath(source.partition("?")[0].removeprefix("sample:"))
    named = [part.partition(".")[0] or part for part in path.parts if not set(part) & set("*?[")]
    return next((part for part in reversed(named) if part.strip("/")), source)


def places(sources: Sequence[str]) -> str:
    """Return the short names of sources, of many the first and their number."""
    shown = ", ".join(map(place, sources[:SHOWN]))
    return shown + (f" and {len(sources) - SHOWN} more" if len(sources) > SHOWN else "")


def called(job: str, *data: str) -> str:
    """Return the name of a run: `job · data, more data`."""
    return PARTS.join(filter(None, [job, ", ".join(filter(None, data))]))


def named(name: Callable[..., str]) -> Callable[[], str]:
    """Return Prefect's `flow_run_name` of a flow: `name` of the flow's parameters."""
    return lambda: name(**flow_run.parameters)


def add_to_name(fact: str) -> None:
    """Add a fact to the name of this run, once it is known."""
    name = flow_run.name or ""
    if not flow_run.id or fact in name:
        return
    try:
        with impatient(), get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, name=f"{name}, {fact}" if PARTS in name else called(name, fact))
    except AWAY:
        pass  # the log has it, too
