"""Serve a registered model over HTTP from one process, which switches to a new champion without dropping a request.

* `Batcher`: requests that wait while the model computes are computed together next, so batches grow with the load.
* `ChampionFollower`: when the alias moves, the next model is loaded aside, tried, and put in place.
* `Service`: the endpoints.

Starlette and uvicorn come with Prefect's and MLflow's servers. Ray Serve wants a cluster and a proxy for one process's
work, and answers from several copies of a model that a laptop has room for once. `mlflow models serve` can't change the
model under load, runs code out of the registry, and does not batch.
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
from urllib.parse import urlsplit

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.registry.download import exact, find
from gpt2.loading import LoadedModel, load
from gpt2.tasks.task import kind

Answer = tuple[LoadedModel, list[dict[str, Any]]]


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

    def __init__(self, current: Callable[[], LoadedModel], batch: int = 64, waiting: int = 4096):
        """`current` returns the model to use; `batch` is the most inputs of a batch of requests, `waiting` of the
        queue."""
        self.current, self.batch, self.most = current, batch, waiting
        self.queue: deque[Waiting] = deque()
        self.waiting, self.batches = 0, 0
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
                outcomes = await loop.run_in_executor(self.thread, compute, model, chosen)
                for request, outcome in zip(chosen, outcomes, strict=True):
                    if request.answer.cancelled():  # the client has disconnected
                        continue
                    if isinstance(outcome, Exception):
                        request.answer.set_exception(outcome)
                    else:
                        request.answer.set_result((model, outcome))
            self.arrived.clear()

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


TOKEN = "GPT2_SERVE_TOKEN"
"""Environment variable with the token that requests send as `Authorization: Bearer TOKEN`; needed beyond loopback."""
BODY_SECONDS = 30
"""Seconds that a client may take to send its request."""
logger = logging.getLogger("gpt2.serving")


class Body(BaseModel):
    """The JSON body of POST /predict."""

    model_config = ConfigDict(extra="forbid")

    inputs: Annotated[list[str | dict[str, list[str] | None]], Field(min_length=1)]
    params: dict[str, int | float | str | bool] = {}


class KnownHost:
    """ASGI middleware that refuses requests whose Host header names none of the hosts (DNS rebinding)."""

    def __init__(self, app: ASGIApp, hosts: list[str]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        if scope["type"] == "http" and "*" not in self.hosts and host_of(given) not in self.hosts:
            reason = (
                f"Host {given!r} is not {self.hosts[0]}; a proxy on this machine sends `Host: {self.hosts[0]}` (nginx: "
                f"proxy_set_header Host {self.hosts[0]}); for other machines, serve at --host 0.0.0.0 with {TOKEN} set"
            )
            return await JSONResponse({"error": reason}, 400)(scope, receive, send)
        await self.app(scope, receive, send)


def host_of(header: str) -> str:
    """Return the host of a Host header, without its port, "" for one that is none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


class Refused(Exception):
    """Raised for a request that gets no predictions, with the HTTP status and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


def identity(model: LoadedModel) -> dict[str, Any]:
    """Return the model's name and version."""
    name, _, version = model.address.removeprefix("models:/").partition("/")
    return {"model": name, "version": int(version)}


class Service:
    """The HTTP endpoints of a followed model."""

    def __init__(self, follower: ChampionFollower, max_inputs: int, max_bytes: int, token: str = ""):
        self.follower, self.max_inputs, self.max_bytes, self.token = follower, max_inputs, max_bytes, token
        self.batcher = Batcher(lambda: follower.current)

    def application(self, hosts: list[str]) -> Starlette:
        """Return the application. It refuses requests whose Host header is not in `hosts` (DNS rebinding)."""
        return Starlette(
            routes=[
                *(Route(path, self.health) for path in ("/health", "/health/")),
                *(Route(path, self.predict, methods=["POST"]) for path in ("/predict", "/predict/")),
            ],
            middleware=[Middleware(KnownHost, hosts=hosts)],
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
        """Answer 200 while a model is loaded; `trouble` is the reason why a newer version is not."""
        facts = {"status": "ok", **identity(self.follower.current), "waiting": self.batcher.waiting}
        return JSONResponse(facts | {"trouble": self.follower.trouble or None})

    async def predict(self, request: Request) -> Response:
        """Answer `{"inputs": [...], "params": {...}}` with the model's name, its version and one prediction per
        input."""
        if self.token:
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                raise Refused(401, "give the service's token: Authorization: Bearer TOKEN")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "send JSON, with Content-Type: application/json")
        body, bad = self.parse(await self.read(request))
        try:
            model, rows = await self.batcher.predict(body.inputs, body.params)
        except Busy:
            raise Refused(503, "too many requests are waiting; try again in a second") from None
        except ValueError as error:
            raise Refused(422, str(error)) from None
        except Exception:
            logger.exception("a prediction failed")
            raise Refused(500, "the prediction failed; the service's log has the reason") from None
        for place in bad:
            rows.insert(place, {"error": BROKEN})
        return JSONResponse({**identity(model), "predictions": rows})

    async def read(self, request: Request) -> bytes:
        """Read the request's body, limited in size and time; raises `Refused` beyond the limits."""
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

    def parse(self, content: bytes) -> tuple[Body, list[int]]:
        """Return (the parsed request, the places of texts that hold half a character and are left out of it).

        Raises `Refused` with the field and its fault.
        """
        content, bad = without_broken(content)
        try:
            body = Body.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"][:2])) or "the body"
            raise Refused(
                422, f'{place}: {first["msg"]}; send {{"inputs": ["a text"], "params": {{}}}}, or records of lists'
            ) from None
        if len(body.inputs) + len(bad) > self.max_inputs:
            raise Refused(413, f"{len(body.inputs) + len(bad)} inputs; send at most {self.max_inputs} at a time")
        return body, bad


BROKEN = "the text holds half of a surrogate pair, as a cut \\ud83d; send whole characters"


def without_broken(content: bytes) -> tuple[bytes, list[int]]:
    """Return (the request without its texts that hold half of a surrogate pair, their places), if others are left."""
    if b"\\ud" not in content.lower():
        return content, []
    with contextlib.suppress(ValueError, RecursionError):
        parsed = json.loads(content)
        if isinstance(parsed, dict) and isinstance(inputs := parsed.get("inputs"), list):
            bad = [i for i, one in enumerate(inputs) if isinstance(one, str) and not is_whole(one)]
            if bad and len(bad) < len(inputs):
                parsed["inputs"] = [one for i, one in enumerate(inputs) if i not in set(bad)]
                return json.dumps(parsed).encode(), bad
    return content, []


def is_whole(text: str) -> bool:
    """Return whether a text has whole characters alone, and can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


async def refusal(request: Request, error: Exception) -> Response:
    """Return the HTTP response to a refused request."""
    assert isinstance(error, Refused)
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    headers |= {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    return JSONResponse({"error": error.reason}, error.status, headers)


def loopback(host: str) -> bool:
    """Return whether only this machine can reach a listener at the host."""
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
    """Return a server with the model loaded, and its socket: `server.run(sockets=[socket])` answers requests.

    Raises `ValueError` if the model can't be loaded, the port is in use, or other machines could connect without a
    token.
    """
    token, local = os.environ.get(TOKEN, ""), loopback(host)
    if not local and not token:
        raise ValueError(
            f"--host {host}: can be reached from other machines; set {TOKEN} to a secret, or use 127.0.0.1"
        )
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
    """Serve a model until interrupted; requests under way are finished first."""
    running, listener = server(address, host, port, poll, max_inputs, max_bytes)
    where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    say(f"{address} at {where}: POST /predict, GET /health; Ctrl-C stops")
    with contextlib.suppress(KeyboardInterrupt):
        running.run(sockets=[listener])
