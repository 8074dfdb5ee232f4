"""The API over HTTP: routes, streams of events, keys, limits on bodies, and errors in the API's shape."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from .answer_response import AnswerResponse, Receive, Scope, Send, error_response
from .api_chat import ChatRequest
from .api_errors import ApiError
from .api_requests import CompletionRequest
from .service import Service

_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health")


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
    length = service.context_length
    model_card = {"id": service.name, "object": "model", "created": created, "owned_by": "allyouneed"}
    # The first is vLLM's name for it.
    model_card |= {"max_model_len": length, "context_length": length}

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
        path = request.url.path
        message = f"{error.detail}: {request.method} {path}"
        if error.status_code == 404:
            message = f"there is no {path} here: this server answers {', '.join(_ROUTES)}"
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
    if first["type"] == "refused":
        said, param = first["ctx"]["said"], first["ctx"]["param"] or name
        return ApiError(400, f"{where}: {said}" if where else said, param=param, code="unsupported_value")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"there is no argument {where} here", param=name, code="unknown_parameter")
    if name is None:
        return ApiError(400, "the body must be a JSON object, sent as application/json")
    given = repr(first.get("input"))
    shown = given if len(given) <= 80 else f"{given[:77]}..."
    return ApiError(400, f"{where}: {first['msg']}; got {shown}", param=name, code="invalid_value")


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
        scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
        expected = (self.protection.api_key or "").encode()
        if scheme.lower() != b"bearer" or not hmac.compare_digest(sent.strip(), expected):
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
