"""A registered model over HTTP, from one process, which goes over to a new champion without a dropped request.

Starlette and uvicorn, which Prefect's and MLflow's servers run on and so bring along. Ray Serve wants a cluster and a
proxy for what one process does here, and answers from several copies of a model that a laptop has room for once;
`mlflow models serve` can't change the model under load, runs code out of the registry, and does not batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.registry.download import exact, find
from gpt2.loading import LoadedModel, load
from gpt2.tasks.task import kind

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
    outcomes: list[list[dict[str, Any]] | Exception] = []
    for request in requests:
        count = len(request.inputs)
        outcomes.append(rows[:count])
        rows = rows[count:]
    return outcomes


class ChampionFollower(threading.Thread):
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
            self.follow_alias()

    def follow_alias(self) -> None:
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


TOKEN = "GPT2_SERVE_TOKEN"
"""The variable with the token that requests carry, as `Authorization: Bearer TOKEN`; needed beyond loopback."""
BODY_SECONDS = 30
"""How long a client may take to send its request."""
logger = logging.getLogger("gpt2.serving")


class Body(BaseModel):
    """What POST /predict takes."""

    model_config = ConfigDict(extra="forbid")

    inputs: Annotated[list[str | dict[str, list[str] | None]], Field(min_length=1)]
    params: dict[str, int | float | str | bool] = {}


class Refused(Exception):
    """A request that gets no predictions: HTTP status, and the reason for people."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


def identity(model: LoadedModel) -> dict[str, Any]:
    """The model's name and version."""
    name, _, version = model.address.removeprefix("models:/").partition("/")
    return {"model": name, "version": int(version)}


class Service:
    """The endpoints around a followed model."""

    def __init__(self, follower: ChampionFollower, max_inputs: int, max_bytes: int, token: str = ""):
        self.follower, self.max_inputs, self.max_bytes, self.token = follower, max_inputs, max_bytes, token
        self.batcher = Batcher(lambda: follower.current)

    def application(self, hosts: list[str]) -> Starlette:
        """The application; a request that names another host than these is refused (DNS rebinding)."""
        return Starlette(
            routes=[Route("/health", self.health), Route("/predict", self.predict, methods=["POST"])],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
            exception_handlers={Refused: refusal},
            lifespan=self.lifespan,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.follower.start()
        batching = asyncio.create_task(self.batcher.run())
        yield
        self.follower.leave.set()
        batching.cancel()

    async def health(self, request: Request) -> Response:
        """200 while a model answers; `trouble` tells why a newer one does not."""
        facts = {"status": "ok", **identity(self.follower.current), "waiting": self.batcher.waiting}
        return JSONResponse(facts | {"trouble": self.follower.trouble or None})

    async def predict(self, request: Request) -> Response:
        """`{"inputs": [...], "params": {...}}` to the model's name and version, and a prediction per input."""
        if self.token:
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                raise Refused(401, "give the service's token: Authorization: Bearer TOKEN")
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Refused(415, "send JSON, with Content-Type: application/json")
        body = self.parse(await self.read(request))
        try:
            model, rows = await self.batcher.predict(body.inputs, body.params)
        except Busy:
            raise Refused(503, "too many requests are waiting; try again in a second") from None
        except ValueError as error:
            raise Refused(422, str(error)) from None
        except Exception:
            logger.exception("a prediction failed")
            raise Refused(500, "the prediction failed; the service's log has the reason") from None
        return JSONResponse({**identity(model), "predictions": rows})

    async def read(self, request: Request) -> bytes:
        """The request's body, bounded in size and time."""
        too_large = Refused(413, f"the body is larger than {self.max_bytes} bytes; send fewer inputs at a time")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self.max_bytes:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    if size > self.max_bytes:
                        raise too_large
        except TimeoutError:
            raise Refused(408, f"the body did not arrive in {BODY_SECONDS} s") from None
        except ClientDisconnect:
            raise Refused(400, "the connection was closed") from None
        return b"".join(parts)

    def parse(self, content: bytes) -> Body:
        """The request; `Refused` names the field and what is wrong with it."""
        try:
            body = Body.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"][:2])) or "the body"
            raise Refused(
                422, f'{place}: {first["msg"]}; send {{"inputs": ["a text"], "params": {{}}}}, or records of lists'
            ) from None
        if len(body.inputs) > self.max_inputs:
            raise Refused(413, f"{len(body.inputs)} inputs; send at most {self.max_inputs} at a time")
        return body


async def refusal(request: Request, error: Exception) -> Response:
    """The answer to a request that was refused."""
    assert isinstance(error, Refused)
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    headers |= {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    return JSONResponse({"error": error.reason}, error.status, headers)


def loopback(host: str) -> bool:
    """Whether only this machine reaches a listener there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server(
    address: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    poll: float = 10.0,
    max_inputs: int = 256,
    max_bytes: int = 1 << 20,
) -> tuple[uvicorn.Server, socket.socket]:
    """A server with the model loaded, and its socket: `server.run(sockets=[socket])` answers.

    `ValueError` for a model that can't be loaded, a port in use, and an open door without a token.
    """
    token, local = os.environ.get(TOKEN, ""), loopback(host)
    if not local and not token:
        raise ValueError(f"--host {host} can be reached from other machines; set {TOKEN} to a secret, or use 127.0.0.1")
    if poll <= 0 or max_inputs < 1 or max_bytes < 1:
        raise ValueError(f"--poll {poll} --max-inputs {max_inputs} --max-bytes {max_bytes}: give more than 0 of each")
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ValueError(f"can't listen at {host}:{port} ({error}); give another --port") from None
    try:
        service = Service(ChampionFollower(address, poll, say), max_inputs, max_bytes, token)
    except BaseException:
        listener.close()
        raise
    app = service.application(["127.0.0.1", "localhost", host] if local else ["*"])
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=30)
    return uvicorn.Server(config), listener


def say(text: str) -> None:
    print(text, flush=True)


def serve(address: str, host: str, port: int, poll: float, max_inputs: int, max_bytes: int) -> None:
    """Answer until interrupted; requests that are under way are finished."""
    running, listener = server(address, host, port, poll, max_inputs, max_bytes)
    where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    say(f"{address} at {where}: POST /predict, GET /health; Ctrl-C stops")
    with contextlib.suppress(KeyboardInterrupt):
        running.run(sockets=[listener])
