"""Requests that wait while the model computes are computed together next: batches grow with the load by themselves."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from gpt2.loading import LoadedModel
from gpt2.task import kind

Answer = tuple[LoadedModel, list[dict[str, Any]]]


class Busy(Exception):
    """More inputs wait than the queue holds."""


@dataclass
class Waiting:
    """Inputs that wait for their rows."""

    inputs: Sequence[Any]
    params: Mapping[str, Any]
    answer: asyncio.Future[Answer]


class Batcher:
    """One computation at a time, in a thread of its own, of all that waits with the same parameters.

    A language model's texts depend on their place in a batch (row i draws from `seed + i`): its requests are computed
    one by one, so that the same request has the same answer.
    """

    def __init__(self, current: Callable[[], LoadedModel], batch: int = 64, waiting: int = 4096):
        """`current` gives the model of this moment; `batch` inputs, or one request, at once; `waiting` in the queue."""
        self.current, self.batch, self.most = current, batch, waiting
        self.queue: deque[Waiting] = deque()
        self.waiting, self.batches = 0, 0
        self.arrived = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def predict(self, inputs: Sequence[Any], params: Mapping[str, Any]) -> Answer:
        """(the model that answered, a row per input). `Busy`, or what the model raises."""
        if self.waiting + len(inputs) > self.most:
            raise Busy
        request = Waiting(inputs, params, asyncio.get_running_loop().create_future())
        self.queue.append(request)
        self.waiting += len(inputs)
        self.arrived.set()
        return await request.answer

    async def run(self) -> None:
        """Compute what arrives, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self.arrived.wait()
            while chosen := self.choose():
                model = self.current()
                self.batches += 1
                outcomes = await loop.run_in_executor(self.thread, compute, model, chosen)
                for request, outcome in zip(chosen, outcomes, strict=True):
                    if request.answer.cancelled():  # whoever asked has left
                        continue
                    if isinstance(outcome, Exception):
                        request.answer.set_exception(outcome)
                    else:
                        request.answer.set_result((model, outcome))
            self.arrived.clear()

    def choose(self) -> list[Waiting]:
        """The first that waits, and those after it that may be computed with it."""
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
    """Equal also in the types of the values."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def compute(model: LoadedModel, requests: Sequence[Waiting]) -> list[list[dict[str, Any]] | Exception]:
    """Each request's rows, or what was wrong with it: one that is refused does not spoil the others."""
    try:
        inputs = [one for request in requests for one in request.inputs]
        rows = model.predict(inputs, **requests[0].params).to_dict("records")
    except Exception as error:
        if len(requests) == 1:
            return [error]
        return [outcome for request in requests for outcome in compute(model, [request])]
    found: list[list[dict[str, Any]] | Exception] = []
    for request in requests:
        count = len(request.inputs)
        found.append(rows[:count])
        rows = rows[count:]
    return found
