"""What a request passes before the application sees it: host, key, body, and a number of its own."""

import asyncio
import hmac
import re
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from .answer_response import Receive, Scope, Send, error_response
from .api_errors import ApiError

# What others send as a request's number, and is safe to send back.
_NUMBER = re.compile(rb"[\w.:-]{1,128}")


@dataclass(frozen=True)
class Protection:
    """What a server does not put up with.

    Attributes:
        api_key: must be sent with each request of the API; nothing must where None.
        body_bytes: the longest body.
        body_seconds: how long a body may take to arrive.
        hosts: names by which the server may be called; any where None. A page of another site can reach a server on
            this machine by a name of its own that it lets point here (DNS rebinding), but not by one of these.
        origins: sites whose pages may use the server from a browser (CORS); `*` means all.
    """

    api_key: str | None = None
    body_bytes: int = 4_000_000
    body_seconds: float = 20.0
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()


class Door:
    """Looks at requests before the application does: host, key, and what the body is and how long it takes to come.

    Each request gets a number, its own (`x-request-id`) or a new one, and is counted.

    Args:
        app: what is behind the door.
        protection: what is refused.
        count: is told the path and the status of each response.
    """

    # What anybody may see: whether the server lives, and the page that asks for the key.
    open_paths = ("/health", "/")

    def __init__(self, app: Any, protection: Protection, count: Callable[[str, int], object] | None = None):
        self.app = app
        self.protection = protection
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] != "/":
            # Some clients put one at the end.
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        headers = dict(scope["headers"])
        send = self._numbered(scope["path"], headers, send)
        try:
            self._check_host(headers)
            if self.protection.api_key is not None and scope["path"] not in self.open_paths:
                self._check_key(headers)
            self._check_encoding(headers)
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

    def _numbered(self, path: str, headers: dict[bytes, bytes], send: Send) -> Send:
        sent = headers.get(b"x-request-id", b"")
        number = sent if _NUMBER.fullmatch(sent) else uuid.uuid4().hex.encode()

        async def send_numbered(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", number)]}
                if self._count is not None:
                    self._count(path, message["status"])
            await send(message)

        return send_numbered

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        if self.protection.hosts is None:
            return
        sent = headers.get(b"host", b"").decode("latin-1")
        name = re.sub(r":\d*$", "", sent).lower()
        if name not in self.protection.hosts:
            message = (
                f"there is no host {sent[:80]!r} here: without an API key this server answers only to "
                f"{', '.join(sorted(self.protection.hosts))}"
            )
            raise ApiError(403, message, code="forbidden_host")

    def _check_encoding(self, headers: dict[bytes, bytes]) -> None:
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
        if encoding.strip().lower() not in ("", "identity"):
            message = f"the body is encoded as {encoding[:80]!r}: send it as it is, without compression"
            raise ApiError(415, message, code="unsupported_encoding")

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
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() == b"application/json":
            try:
                body.decode()
            except UnicodeDecodeError as error:
                raise ApiError(400, f"the body is not UTF-8: byte {error.start} is 0x{body[error.start]:02x}") from None
        return bytes(body)
