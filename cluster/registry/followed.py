"""A model that is served: it follows its alias, answers what waits in batches, and keeps a log of its answers.

* `Batcher`: requests that wait while the model computes are computed together next, so batches grow with the load.
* `ChampionFollower`: when the alias moves, the next model is loaded aside, tried, and put in place.
* `AnswerLog`: JSON lines that `gpt2 monitor` reads as posts.
* `Completion`, `Writing`: a request in the form of OpenAI's completions, and its answer, whole or in pieces.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from cluster.registry.download import exact, find
from gpt2.loading import LoadedModel, load
from gpt2.tasks.task import kind

Answer = tuple[LoadedModel, list[dict[str, Any]]]


logger = logging.getLogger("gpt2.serving")
Piece = TypeVar("Piece")
TEXTS = 64
"""Most texts that are written at the same time; each holds its keys and values."""


class Busy(Exception):
    """Raised where the queue has no room for a request's inputs."""


@dataclass
class Waiting:
    """A request in the queue: its inputs, its parameters and the future of its answer."""

    inputs: Sequence[Any]
    params: Mapping[str, Any]
    answer: asyncio.Future[Answer]


class Batcher:
    """Batches waiting requests with the same parameters, and computes one batch at a time in its own thread.

    The texts of a language model depend on their row in the batch (row i draws from `seed + i`). So its requests are
    computed one by one, and the same request always has the same answer.
    """

    def __init__(
        self,
        current: Callable[[], LoadedModel],
        batch: int = 64,
        waiting: int = 4096,
        log: AnswerLog | None = None,
    ):
        """`current` returns the model to use; `batch` is the most inputs of a batch of requests, `waiting` of the
        queue. The `log` gets the answers."""
        self.current, self.batch, self.most, self.log = current, batch, waiting, log
        self.queue: deque[Waiting] = deque()
        self.waiting, self.batches, self.writing = 0, 0, 0
        self.arrived = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def predict(self, inputs: Sequence[Any], params: Mapping[str, Any]) -> Answer:
        """Return (the model that answered, one row per input). Raises `Busy`, or the model's own error."""
        if self.waiting + len(inputs) > self.most:
            raise Busy
        request = Waiting(inputs, params, asyncio.get_running_loop().create_future())
        self.queue.append(request)
        self.waiting += len(inputs)
        self.arrived.set()
        return await request.answer

    async def run(self) -> None:
        """Compute requests as they arrive, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self.arrived.wait()
            while chosen := self.choose():
                model = self.current()
                self.batches += 1
                outcomes = await loop.run_in_executor(self.thread, self.compute, model, chosen)
                for request, outcome in zip(chosen, outcomes, strict=True):
                    if request.answer.cancelled():  # the client has disconnected
                        continue
                    if isinstance(outcome, Exception):
                        request.answer.set_exception(outcome)
                    else:
                        request.answer.set_result((model, outcome))
            self.arrived.clear()

    def compute(self, model: LoadedModel, chosen: Sequence[Waiting]) -> list[list[dict[str, Any]] | Exception]:
        """Return each request's rows, or its error, and log the rows."""
        outcomes = compute(model, chosen)
        if self.log:
            for request, outcome in zip(chosen, outcomes, strict=True):
                if not isinstance(outcome, Exception):
                    self.log.add(model, request.inputs, outcome)
        return outcomes

    async def iterate(self, pieces: Generator[Piece], rows: int) -> AsyncGenerator[Piece]:
        """Yield what a generator of `rows` texts makes, a piece at a time in the model's thread.

        Other requests are computed between two pieces. Raises `Busy`, or the generator's own error.
        """
        if self.writing + rows > TEXTS:
            raise Busy
        self.writing += rows
        loop = asyncio.get_running_loop()
        try:
            while (piece := await loop.run_in_executor(self.thread, next, pieces, None)) is not None:
                yield piece
        finally:
            self.writing -= rows
            loop.run_in_executor(self.thread, pieces.close)  # after the piece that is being made

    def choose(self) -> list[Waiting]:
        """Take the first waiting request, and those after it that may share its batch, from the queue."""
        chosen: list[Waiting] = []
        while self.queue:
            request = self.queue[0]
            fits = not chosen or sum(len(r.inputs) for r in (*chosen, request)) <= self.batch
            independent = kind(self.current().task).independent_rows
            if chosen and not (fits and independent and same(request.params, chosen[0].params)):
                break
            chosen.append(self.queue.popleft())
        self.waiting -= sum(len(r.inputs) for r in chosen)
        return chosen


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two sets of parameters are equal, including the types of the values."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def compute(model: LoadedModel, requests: Sequence[Waiting]) -> list[list[dict[str, Any]] | Exception]:
    """Return each request's rows, or its error. A request that fails does not affect the others in its batch."""
    try:
        inputs = [one for request in requests for one in request.inputs]
        rows = model.predict(inputs, **requests[0].params).to_dict("records")
    except Exception as error:
        if len(requests) == 1:
            return [error]
        return [outcome for request in requests for outcome in compute(model, [request])]
    if len(requests) == 1:  # a prompt may have several rows
        return [rows]
    outcomes: list[list[dict[str, Any]] | Exception] = []
    for request in requests:
        count = len(request.inputs)
        outcomes.append(rows[:count])
        rows = rows[count:]
    return outcomes


class ChampionFollower(threading.Thread):
    """Thread that keeps `current`, a loaded model, at the version that an alias points at.

    A new model replaces `current` in one assignment, after it has answered once. If a version is refused or the
    registry does not answer, `current` stays, the reason is printed once, and `trouble` holds it.
    """

    def __init__(self, address: str, poll: float, say: Callable[[str], None]):
        """Load the model at `address`; raises `ValueError` if that fails. `poll`: seconds between two checks of the
        alias."""
        super().__init__(daemon=True, name="model-follower")
        self.address, self.poll, self.say = address, poll, say
        self.leave, self.trouble = threading.Event(), ""
        self.current = ready(exact(find(address)))

    def run(self) -> None:
        while not self.leave.wait(self.poll):
            self.follow_alias()

    def follow_alias(self) -> None:
        """Load the version that the alias points at, if it is another one."""
        try:
            newest = exact(find(self.address))
            if newest != self.current.address:
                before, self.current = self.current.address, ready(newest)
                self.say(f"{newest} answers now, instead of {before}")
            self.trouble = ""
        except Exception as error:  # whatever the error, the current model goes on answering
            if str(error) != self.trouble:
                self.say(f"{self.current.address} goes on answering: {error}")
            self.trouble = str(error)


def ready(address: str) -> LoadedModel:
    """Return the model at an address, verified and warm: it has answered once."""
    model = load(address)
    model.predict(list(model.predictor.input_example))
    return model


def identity(model: LoadedModel) -> dict[str, Any]:
    """Return the model's name and version."""
    name, _, version = model.address.removeprefix("models:/").partition("/")
    return {"model": name, "version": int(version)}


class AnswerLog:
    """Answers as JSON lines, a file per day (UTC): `time`, `id`, `model`, `version`, `text` and `answer`.

    `gpt2 monitor` reads the folder as a source of posts. A log that can't be written stops no answer: the reason is
    printed once, and `lost` counts.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]):
        """Make the folder, readable by its owner only; raises `ValueError` if nothing can be written there."""
        self.folder, self.say = folder.absolute(), say
        self.trouble, self.lost = "", 0
        self.day, self.file = "", -1
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.open(datetime.now(UTC))
        except OSError as error:
            raise ValueError(f"--log {folder}: can't be written ({error}); give another folder") from None

    def open(self, now: datetime) -> None:
        """Open the file of a day; a line that was cut off there is ended."""
        self.close()
        self.day = f"{now:%Y-%m-%d}"
        path = self.folder / f"served-{self.day}.jsonl"
        self.file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        if (size := os.fstat(self.file).st_size) and os.pread(self.file, 1, size - 1) != b"\n":
            os.write(self.file, b"\n")

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
        self.day, self.file = "", -1

    def add(self, model: LoadedModel, inputs: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a line per row; a row of a language model names its own prompt."""
        now = datetime.now(UTC)
        asked = [row.get("prompt") for row in rows] if len(rows) != len(inputs) else inputs
        facts = {"time": now.isoformat(timespec="milliseconds"), **identity(model)}
        lines = "".join(
            json.dumps({**facts, "id": uuid.uuid4().hex, "text": text_of(one), "answer": row}) + "\n"
            for one, row in zip(asked, rows, strict=True)
        ).encode()
        try:
            if self.day != f"{now:%Y-%m-%d}":
                self.open(now)
            if (written := os.write(self.file, lines)) < len(lines):
                raise OSError(f"{written} of {len(lines)} bytes were written")
            self.trouble = ""
        except OSError as error:
            self.close()
            self.lost += len(rows)
            if str(error) != self.trouble:
                self.say(f"answers are not logged in {self.folder}: {error}")
            self.trouble = str(error)


def text_of(given: Any) -> str:
    """Return an input as a text: a record as JSON."""
    return given if isinstance(given, str) else json.dumps(given)


class Completion(BaseModel):
    """The JSON body of POST /v1/completions: OpenAI's fields, of which those without an effect here must be unset."""

    model_config = ConfigDict(extra="forbid")

    model: str
    prompt: str | Annotated[list[str], Field(min_length=1)] = ""
    max_tokens: int = Field(16, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=0, lt=1 << 62)
    stream: bool = False
    stream_options: dict[str, bool] | None = None
    user: str | None = None
    echo: Literal[False] = False
    logprobs: None = None
    suffix: None = None
    frequency_penalty: float = Field(0, ge=0, le=0)
    presence_penalty: float = Field(0, ge=0, le=0)
    top_k: int = Field(0, ge=0)
    """Not OpenAI's: the fields of `gpt2.generation.generate.Sampling`."""
    repetition_penalty: float = Field(1.0, gt=0)

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class Writing:
    """A completion under way."""

    def __init__(self, model: LoadedModel, asked: Completion, batcher: Batcher):
        self.model, self.asked, self.batcher = model, asked, batcher
        self.rows: list[Any] = []
        names = ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty")
        params = {name: getattr(asked, name) for name in names}
        seed = secrets.randbelow(1 << 31) if asked.seed is None else asked.seed
        predictor: Any = model.predictor
        made = predictor.pieces(asked.prompts, {**params, "samples": asked.n, "seed": seed}, asked.stops, self.rows)
        self.pieces = batcher.iterate(made, asked.n * len(asked.prompts))
        self.facts = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": f"version-{identity(model)['version']}",
        }

    async def begin(self) -> None:
        """Write the first piece; raises `Busy`, or `ValueError` for a prompt without room."""
        self.first = await anext(self.pieces, None)
        self.texts = [""] * len(self.rows)

    async def all(self) -> AsyncIterator[tuple[int, str]]:
        """Yield (row, new text) of all pieces, then log the texts."""
        try:
            piece = self.first
            while piece is not None:
                self.texts[piece[0]] += piece[1]
                yield piece
                piece = await anext(self.pieces, None)
        finally:
            await self.pieces.aclose()
        if self.batcher.log:
            prompts = [prompt for prompt in self.asked.prompts for _ in range(self.asked.n)]
            await asyncio.get_running_loop().run_in_executor(
                self.batcher.thread, self.batcher.log.add, self.model, prompts, [{"text": t} for t in self.texts]
            )

    def choice(self, row: int, text: str, ended: bool) -> dict[str, Any]:
        state = self.rows[row]
        reason = "stop" if state.stopped or state.ended else "length"
        return {"text": text, "index": row, "logprobs": None, "finish_reason": reason if ended else None}

    async def usage(self) -> dict[str, int]:
        tokenizer: Any = self.model.predictor.tokenizer  # type: ignore[attr-defined]
        ids = await asyncio.get_running_loop().run_in_executor(
            self.batcher.thread, lambda: [tokenizer.encode(prompt) for prompt in self.asked.prompts]
        )
        read, wrote = sum(map(len, ids)), sum(row.count for row in self.rows)
        return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}

    async def whole(self) -> dict[str, Any]:
        """Return the answer to a request without streaming."""
        async for _ in self.all():
            pass
        choices = [self.choice(row, text, True) for row, text in enumerate(self.texts)]
        return {**self.facts, "choices": choices, "usage": await self.usage()}

    async def events(self) -> AsyncIterator[str]:
        """Yield the server-sent events: a chunk per piece, one with each row's reason to end, and `[DONE]`."""
        try:
            async for row, text in self.all():
                yield event({**self.facts, "choices": [self.choice(row, text, False)]})
            for row in range(len(self.rows)):
                yield event({**self.facts, "choices": [self.choice(row, "", True)]})
            if (self.asked.stream_options or {}).get("include_usage"):
                yield event({**self.facts, "choices": [], "usage": await self.usage()})
            yield "data: [DONE]\n\n"
        except Exception:
            logger.exception("a completion failed")
            yield event({"error": {"message": "the completion failed", "type": "server_error"}})


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
