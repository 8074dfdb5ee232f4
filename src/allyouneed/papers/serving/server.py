"""The API over HTTP: routes, streams of events, keys, limits on bodies, and errors in the API's shape."""

import asyncio
import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from .answers import Answer, Piece
from .protocol import ApiError, ChatRequest, CompletionRequest, Form, event
from .service import Service, worded

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Scope = MutableMapping[str, Any]


@dataclass(frozen=True)
class Protection:
    """What a server does not put up with.

    Attributes:
        api_key: must be sent with each request of the API; nothing must where None.
        body_bytes: the longest body.
        body_seconds: how long a body may take to arrive.
    """

    api_key: str | None = None
    body_bytes: int = 4_000_000
    body_seconds: float = 20.0


def create_app(service: Service, protection: Protection | None = None) -> Any:
    """Make the ASGI application; the engine's thread runs for as long as the application does.

    Args:
        service: answers.
        protection: what is refused at the door.
    """
    created = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        # The HTTP server has waited for answers as long as it would.
        await asyncio.to_thread(service.engine.stop, 0.0)

    app = FastAPI(title=f"{service.name}, served by allyouneed", lifespan=lifespan, openapi_url=None)
    model_card = {"id": service.name, "object": "model", "created": created, "owned_by": "allyouneed"}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "statistics": asdict(service.engine.statistics)}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_card]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return model_card

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(asked: ChatRequest, request: HttpRequest) -> Response:
        return AnswerResponse(service, asked, await service.ask(asked))

    @app.post("/v1/completions", response_model=None)
    async def completions(asked: CompletionRequest, request: HttpRequest) -> Response:
        return AnswerResponse(service, asked, await service.ask(asked))

    @app.exception_handler(ApiError)
    async def say(_: HttpRequest, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def say_what_is_invalid(_: HttpRequest, error: RequestValidationError) -> Response:
        return error_response(invalid(error))

    @app.exception_handler(HTTPException)
    async def say_what_http_refuses(request: HttpRequest, error: HTTPException) -> Response:
        message = f"{error.detail}: {request.method} {request.url.path}"
        return error_response(ApiError(error.status_code, message, headers=error.headers))

    @app.exception_handler(Exception)
    async def say_that_it_failed(_: HttpRequest, error: Exception) -> Response:
        return error_response(ApiError(500, f"the server failed: {type(error).__name__}"))

    return Door(app, protection or Protection())


def invalid(error: RequestValidationError) -> ApiError:
    """Say what is wrong with a body: its first mistake."""
    first = error.errors()[0]
    place = [part for part in first["loc"] if part != "body"]
    name = str(place[0]) if place and isinstance(place[0], str) else None
    where = ".".join(map(str, place))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])} at {where}")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"there is no argument {where} here", param=name, code="unknown_parameter")
    if name is None:
        return ApiError(400, "the body must be a JSON object, sent as application/json")
    given = repr(first.get("input"))
    shown = given if len(given) <= 80 else f"{given[:77]}..."
    return ApiError(400, f"{where}: {first['msg']}; got {shown}", param=name, code="invalid_value")


def json_response(body: Any, status: int = 200, headers: Any = None) -> Response:
    """Write JSON in ASCII, which has a form for everything that a request may have held."""
    return Response(json.dumps(body), status, headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """Write an error."""
    return json_response(error.body, error.status, error.headers)


class AnswerResponse(Response):
    """An answer on its way: whole or as a stream, and let go of as soon as nobody is there to read it.

    Args:
        service: answers.
        asked: what was asked.
        answer: what comes.
    """

    def __init__(self, service: Service, asked: ChatRequest | CompletionRequest, answer: Answer):
        super().__init__()
        self._service = service
        self._asked = asked
        self._answer = answer
        self._with_tokens = asked.likeliest is not None
        self._form = Form(isinstance(asked, ChatRequest), uuid.uuid4().hex, service.name, int(time.time()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, unless the client goes away before."""
        send_it = self._stream if self._asked.stream else self._whole
        sending = asyncio.ensure_future(send_it(scope, receive, send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            leaving.cancel()
            # What is finished stays as it is.
            self._service.cancel(self._answer)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces: dict[int, list[Piece]] = {}
        try:
            while new := await self._answer.pieces():
                for piece in new:
                    pieces.setdefault(piece.choice, []).append(piece)
        except Exception as error:
            await error_response(worded(error))(scope, receive, send)
            return
        texts = [_joined(pieces[choice]) for choice in sorted(pieces)]
        await json_response(self._form.whole(texts, self._answer.usage, self._with_tokens))(scope, receive, send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        started: set[int] = set()

        async def write(*bodies: Any) -> None:
            data = b"".join(map(event, bodies))
            await send({"type": "http.response.body", "body": data, "more_body": True})

        try:
            new = await self._answer.pieces()
        except Exception as error:
            # Before anything is sent, an error can have its own status.
            await error_response(worded(error))(scope, receive, send)
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while new:
                bodies = []
                for piece in new:
                    if self._form.chat and piece.choice not in started:
                        started.add(piece.choice)
                        bodies.append(self._form.first(piece.choice))
                    bodies.append(self._form.piece(piece, self._with_tokens))
                await write(*bodies)
                new = await self._answer.pieces()
        except Exception as error:
            await write(worded(error).body)
        else:
            await write(*([self._form.last(self._answer.usage)] if self._asked.with_usage else []), "[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Door:
    """Looks at requests before the application does: the key, the length of the body, and how long it takes to come.

    Args:
        app: what is behind the door.
        protection: what is refused.
    """

    def __init__(self, app: Any, protection: Protection):
        self.app = app
        self.protection = protection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            headers = dict(scope["headers"])
            if self.protection.api_key is not None and scope["path"] != "/health":
                self._check_key(headers)
            body = await self._body(headers, receive)
        except ApiError as error:
            error.headers["connection"] = "close"
            await error_response(error)(scope, receive, send)
            return
        if body is None:
            return
        first = {"type": "http.request", "body": body, "more_body": False}

        async def receive_again() -> MutableMapping[str, Any]:
            nonlocal first
            message, first = first, None
            return message if message is not None else await receive()

        await self.app(scope, receive_again, send)

    def _check_key(self, headers: dict[bytes, bytes]) -> None:
        sent = headers.get(b"authorization", b"")
        expected = f"Bearer {self.protection.api_key}".encode()
        if not hmac.compare_digest(sent, expected):
            message = "the API key is missing or wrong: send it as `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """Read the body; None where the client goes away meanwhile."""
        most = self.protection.body_bytes
        length = int(sent) if (sent := headers.get(b"content-length", b"0")).isdigit() else 0
        body = bytearray()
        try:
            async with asyncio.timeout(self.protection.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    length = max(length, len(body) + len(message["body"]))
                    # What is too long is read to its end all the same, but not kept: clients listen only then.
                    body += message["body"] if length <= most else b""
                    if not message["more_body"]:
                        break
        except TimeoutError:
            seconds = self.protection.body_seconds
            message = f"only {len(body)} bytes of the body came within {seconds} seconds"
            raise ApiError(408, message, code="body_timeout") from None
        if length > most:
            raise ApiError(413, f"the body is longer than the {most} bytes that are read here")
        return bytes(body)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _joined(pieces: list[Piece]) -> Piece:
    """Make one piece of all that belong to a text."""
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Piece(pieces[0].choice, "".join(piece.text for piece in pieces), tokens, pieces[-1].reason)
