"""Serve a registered model over HTTP from one process, which switches to a new champion without dropping a request.

`cluster.registry.followed` has the model, its batches and the log of its answers. A language model also has OpenAI's
endpoint of completions, with streaming, so that clients of that form work.

Starlette and uvicorn come with Prefect's and MLflow's servers. Ray Serve wants a cluster and a proxy for one process's
work, and answers from several copies of a model that a laptop has room for once. `mlflow models serve` can't change the
model under load, runs code out of the registry, and does not batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import importlib.metadata
import inspect
import ipaddress
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.registry.followed import (
    TEXTS,
    AnswerLog,
    Batcher,
    Busy,
    ChampionFollower,
    Completion,
    Writing,
    identity,
)
from gpt2.tasks.base.kind import BASE

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


METRICS = "gpt2_serve_"


class Measured:
    """ASGI middleware that counts and times requests, in Prometheus' terms."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.registry, self.paths = app, service.registry, {route.path for route in service.routes()}
        self.requests = Counter(f"{METRICS}requests", "Requests.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            f"{METRICS}request_seconds", "Time to the end of an answer.", ["path"], registry=self.registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"] if scope["path"] in self.paths else "other"
        status, started = 499, time.perf_counter()  # as nginx counts clients that have left

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            self.requests.labels(path, status).inc()
            self.seconds.labels(path).observe(time.perf_counter() - started)


class State(Collector):
    """The service's own figures, read when they are asked for."""

    def __init__(self, service: Service):
        self.service = service

    def collect(self) -> Iterator[Metric]:
        batcher, follower = self.service.batcher, self.service.follower
        yield CounterMetricFamily(f"{METRICS}batches", "Batches computed.", batcher.batches)
        yield GaugeMetricFamily(f"{METRICS}waiting_inputs", "Inputs in the queue.", batcher.waiting)
        yield GaugeMetricFamily(f"{METRICS}texts", "Texts being written.", batcher.writing)
        yield GaugeMetricFamily(f"{METRICS}trouble", "1 if a newer version is refused.", bool(follower.trouble))
        lost = batcher.log.lost if batcher.log else 0
        yield CounterMetricFamily(f"{METRICS}unlogged", "Answers that the log could not take.", lost)
        version = GaugeMetricFamily(f"{METRICS}model_version", "Version of the model.", labels=["model"])
        now = identity(follower.current)
        version.add_metric([now["model"]], now["version"])
        yield version


class Service:
    """The HTTP endpoints of a followed model."""

    def __init__(
        self,
        follower: ChampionFollower,
        max_inputs: int,
        max_bytes: int,
        token: str = "",
        log: AnswerLog | None = None,
    ):
        self.follower, self.max_inputs, self.max_bytes, self.token = follower, max_inputs, max_bytes, token
        self.batcher = Batcher(lambda: follower.current, log=log)
        self.registry = CollectorRegistry()
        self.registry.register(State(self))

    def routes(self) -> list[Route]:
        """Return the routes; a path may end with a slash."""
        posts, gets = {"/predict": self.predict}, {"/health": self.health, "/metrics": self.metrics}
        if self.follower.current.task == BASE.name:
            posts["/v1/completions"], gets["/v1/models"] = self.complete, self.models
        gets |= {"/openapi.json": self.openapi, "/docs": self.docs}
        both = ((posts, "POST"), (gets, "GET"))
        return [
            Route(path, endpoint, methods=[method])
            for endpoints, method in both
            for given, endpoint in endpoints.items()
            for path in (given, f"{given}/")
        ]

    def application(self, hosts: list[str]) -> Starlette:
        """Return the application. It refuses requests whose Host header is not in `hosts` (DNS rebinding)."""
        return Starlette(
            routes=self.routes(),
            middleware=[Middleware(Measured, service=self), Middleware(KnownHost, hosts=hosts)],
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

    def admit(self, request: Request) -> None:
        """Raise `Refused` if a request has not the service's token, or sends what is not JSON."""
        if self.token:
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                raise Refused(401, "give the service's token: Authorization: Bearer TOKEN")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method == "POST" and kind != "application/json":
            raise Refused(415, "send JSON, with Content-Type: application/json")

    async def metrics(self, request: Request) -> Response:
        """Answer with Prometheus' text."""
        self.admit(request)
        return Response(generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def openapi(self, request: Request) -> Response:
        """Answer with the description of the endpoints, in OpenAPI's form."""
        return JSONResponse(described(self.routes()))

    async def docs(self, request: Request) -> Response:
        """Answer with a page of the endpoints, whose script the browser fetches from the web."""
        from fastapi.openapi.docs import get_swagger_ui_html

        return get_swagger_ui_html(openapi_url="openapi.json", title="gpt2 serve")

    async def models(self, request: Request) -> Response:
        """Answer with the model's name, as clients of OpenAI's form ask for it."""
        self.admit(request)
        name = identity(self.follower.current)["model"]
        return JSONResponse(
            {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "gpt2"}]}
        )

    async def complete(self, request: Request) -> Response:
        """Continue one or more prompts, whole or as server-sent events, as OpenAI's endpoint of completions does."""
        self.admit(request)
        content = await self.read(request)
        try:
            asked = Completion.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise Refused(400, f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}") from None
        model = self.follower.current
        if asked.model != (name := identity(model)["model"]):
            raise Refused(404, f"model {asked.model!r:.100} is not served here; ask for {name!r}")
        if (rows := asked.n * len(asked.prompts)) > TEXTS:
            raise Refused(400, f"{rows} texts (prompts times n); ask for at most {TEXTS} at a time")
        writing = Writing(model, asked, self.batcher)
        try:
            await writing.begin()
            if not asked.stream:
                return JSONResponse(await writing.whole())
        except Busy:
            raise Refused(503, "too many texts are being written; try again in a second") from None
        except ValueError as error:
            raise Refused(400, str(error)) from None
        return StreamingResponse(
            writing.events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def predict(self, request: Request) -> Response:
        """Answer `{"inputs": [...], "params": {...}}` with the model's name, its version and one prediction per
        input."""
        self.admit(request)
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


def described(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the OpenAPI description of the routes."""
    bodies: dict[str, type[BaseModel]] = {"/predict": Body, "/v1/completions": Completion}
    paths: dict[str, Any] = {}
    for route in routes:
        if route.path.endswith("/"):
            continue
        method = next(iter((route.methods or set()) - {"HEAD"})).lower()
        paths[route.path] = {
            method: {"summary": inspect.getdoc(route.endpoint), "responses": {"200": {"description": "The answer."}}}
        }
        if body := bodies.get(route.path):
            schema = {"schema": body.model_json_schema()}
            paths[route.path][method] |= {
                "requestBody": {"required": True, "content": {"application/json": schema}},
                "security": [{}, {"token": []}],
            }
    schemes = {"token": {"type": "http", "scheme": "bearer", "description": f"If {TOKEN} is set."}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpt2 serve", "version": importlib.metadata.version("gpt2-pipeline")},
        "paths": paths,
        "components": {"securitySchemes": schemes},
    }


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
    if request.url.path.startswith("/v1/"):  # OpenAI's form
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        answer: Any = {"message": error.reason, "type": kind, "param": None, "code": None}
    else:
        answer = error.reason
    return JSONResponse({"error": answer}, error.status, headers)


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
    log: Path | None = None,
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
        answers = AnswerLog(log, say) if log else None
        service = Service(ChampionFollower(address, poll, say), max_inputs, max_bytes, token, answers)
    except BaseException:
        listener.close()
        raise
    app = service.application(["127.0.0.1", "localhost", host] if local else ["*"])
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=30)
    return uvicorn.Server(config), listener


def say(text: str) -> None:
    print(text, flush=True)


def serve(address: str, host: str, port: int, poll: float, max_inputs: int, max_bytes: int, log: Path | None) -> None:
    """Serve a model until interrupted; requests under way are finished first."""
    running, listener = server(address, host, port, poll, max_inputs, max_bytes, log)
    where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    say(f"{address} at {where}: POST /predict, GET /health, /metrics, /docs; Ctrl-C stops")
    with contextlib.suppress(KeyboardInterrupt):
        running.run(sockets=[listener])
