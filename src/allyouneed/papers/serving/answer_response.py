"""An answer on its way over HTTP: whole, or as a stream of events."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, ClassVar

from starlette.responses import Response

from .answers import Answer, Piece
from .api_chat import ChatRequest
from .api_errors import ApiError
from .api_requests import CompletionRequest
from .responses import ChatFormatter, CompletionFormatter, event
from .service import Service, worded

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Scope = MutableMapping[str, Any]


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

    ping_seconds: ClassVar[float] = 5.0

    def __init__(self, service: Service, asked: ChatRequest | CompletionRequest, answer: Answer):
        super().__init__()
        self._service = service
        self._asked = asked
        self._answer = answer
        texts = None if asked.count_of_top_logprobs is None else service.texts
        created = int(time.time())
        if isinstance(asked, ChatRequest):
            tools = [tool.function.name for tool in asked.callable_tools]
            tool_calls = service.tool_calls if tools else None
            self._formatter = ChatFormatter(service.name, created, texts, tool_calls, tools)
        else:
            self._formatter = CompletionFormatter(service.name, created, texts)

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
        kept = self._best(sorted(pieces))
        sequences = [_joined(index, pieces[choice]) for index, choice in enumerate(kept)]
        await json_response(self._formatter.whole(sequences, self._answer.usage))(scope, receive, send)

    def _best(self, choices: list[int]) -> list[int]:
        """Give the choices that are answered: all, or of each prompt's the best."""
        asked = self._asked
        if not isinstance(asked, CompletionRequest) or asked.best_of is None:
            return choices
        groups = [choices[start : start + asked.best_of] for start in range(0, len(choices), asked.best_of)]
        return [choice for group in groups for choice in self._answer.likeliest(group, asked.n or 1)]

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(*bodies: Any) -> None:
            data = b"".join(map(event, bodies))
            await send({"type": "http.response.body", "body": data, "more_body": True})

        # At once, so that nobody takes a request that waits for one that is lost.
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while new := await self._next(send):
                await write(*(chunk for piece in new for chunk in self._formatter.chunks(piece)))
        except Exception as error:
            await write(worded(error).body)
        else:
            usage = [self._formatter.last(self._answer.usage)] if self._asked.include_usage else []
            await write(*usage, "[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self, send: Send) -> list[Piece]:
        """Wait for pieces, and send a comment now and then while none come: a silent connection may be closed."""
        coming = asyncio.ensure_future(self._answer.pieces())
        try:
            while not (await asyncio.wait({coming}, timeout=self.ping_seconds))[0]:
                await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
            return await coming
        finally:
            coming.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _joined(index: int, pieces: list[Piece]) -> Piece:
    """Make one piece of all that belong to a sequence."""
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Piece(index, "".join(piece.text for piece in pieces), tokens, pieces[-1].reason)
