"""The API over HTTP: routes, streams of events, keys, limits on bodies, and errors in the API's shape."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from .answer_response import AnswerResponse, error_response
from .api_chat import ChatRequest
from .api_errors import ApiError
from .api_requests import CompletionRequest
from .door import Door, Protection
from .metrics import Metrics
from .service import Service

_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/openapi.json", "/")
# The page is whole in itself: it loads nothing, and speaks to this server alone.
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


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

    app = FastAPI(title=f"{service.name}, served by allyouneed", lifespan=lifespan, docs_url=None, redoc_url=None)
    metrics = Metrics(service.engine)
    service.observe = metrics.timed
    page = files("allyouneed.papers.serving").joinpath("chat.html").read_bytes()
    length = service.context_length
    model_card = {"id": service.name, "object": "model", "created": created, "owned_by": "allyouneed"}
    # The first is vLLM's name for it.
    model_card |= {"max_model_len": length, "context_length": length}

    @app.get("/", include_in_schema=False)
    async def chat_page() -> Response:
        headers = {"content-security-policy": _PAGE_POLICY, "x-content-type-options": "nosniff"}
        return Response(page, headers=headers, media_type="text/html; charset=utf-8")

    @app.get("/metrics", include_in_schema=False)
    async def metrics_text() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)

    @app.head("/health", include_in_schema=False)
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

    def count(path: str, status: int) -> None:
        # Paths that nobody serves are one: anybody can think of any number.
        route = next((own for own in _ROUTES if path == own or (path.startswith(own + "/") and own != "/")), "other")
        metrics.requests.labels(route, str(status)).inc()

    protection = protection or Protection()
    door = Door(app, protection, count)
    if not protection.origins:
        return door
    return _Cors(
        door,
        allow_origins=protection.origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=("x-request-id", "retry-after"),
    )


class _Cors(CORSMiddleware):
    """Says by whom a page may be served, and refuses the others in the API's own shape."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer what a browser asks before it sends a request."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        origin, said = request_headers.get("origin", ""), bytes(response.body).decode()
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return error_response(
            ApiError(response.status_code, f"{said}: {origin}", code="forbidden_origin", headers=headers)
        )


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
