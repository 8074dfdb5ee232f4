"""Connections that cost nothing for long: half-sent heads, idle clients and slow readers are let go of.

And the loop around it all: a socket, signals, and an end that lets answers be finished.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, with a limit to patience.

    A connection is closed where the head of a request does not come in time, and cut off where what is sent to it is
    not read in time. Bodies are the application's to wait for.
    """

    head_seconds: ClassVar[float] = 20.0
    reading_seconds: ClassVar[float] = 30.0

    _head_timer: asyncio.TimerHandle | None = None
    _reading_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Wait for the first head."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take in a part of a request."""
        super().data_received(data)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for timer in (self._head_timer, self._reading_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Hear that the client does not read what is sent."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """Hear that it does again."""
        super().resume_writing()
        if self._reading_timer is not None:
            self._reading_timer.cancel()
            self._reading_timer = None

    def on_response_complete(self) -> None:
        """See to it that even the end of a response is not kept for ever."""
        super().on_response_complete()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._await_reader()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; what it has not read yet is not waited for."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self._await_reader()

    def send_400_response(self, msg: str) -> None:
        """Say in the API's shape what is no HTTP; a head that is too long has a status of its own."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        said = "the request's headers are too long" if status == 431 else "this is no HTTP request"
        body = {"message": said, "type": "invalid_request_error", "param": None, "code": None}
        data = json.dumps({"error": body}).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        headers.append((b"content-length", str(len(data)).encode()))
        for part in (h11.Response(status_code=status, headers=headers), h11.Data(data=data), h11.EndOfMessage()):
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    def _expect_head(self) -> None:
        waits = self.cycle is None or self.cycle.response_complete
        if waits and self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._close)
        elif not waits and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close(self) -> None:
        self._head_timer = None
        # An answer that is on its way, or was answered meanwhile, is uvicorn's own affair.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _await_reader(self) -> None:
        if self._reading_timer is None:
            self._reading_timer = self.loop.call_later(self.reading_seconds, self.transport.abort)


def listen(host: str, port: int) -> socket.socket:
    """Open the socket; port 0 takes any free one.

    Raises:
        OSError: the address is taken, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
    except OSError:
        opened.close()
        raise
    return opened


class PatientServer(uvicorn.Server):
    """The HTTP server, and its end: at the first signal quietly and in order, at the second at once.

    Args:
        config: of uvicorn.
        finish_seconds: how long answers may take to be finished.
        on_ready: called once connections are taken.
        on_stop: called when the end begins; should see to it that answers end within `finish_seconds`.
    """

    # What is sent at the end may still be on its way.
    _GRACE_SECONDS = 3.0

    def __init__(
        self,
        config: uvicorn.Config,
        finish_seconds: float,
        on_ready: Callable[[], object] | None,
        on_stop: Callable[[], object] | None,
    ):
        super().__init__(config)
        self._finish_seconds = finish_seconds
        self._on_ready = on_ready
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections."""
        await super().startup(sockets)
        if self._on_ready is not None and not self.should_exit:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Hear a signal. None is raised again at the end: that would be the process's death, and not its exit."""
        if self.should_exit:
            # The thread that computes can neither be ended nor outlive the interpreter.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(128 + sig)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, let answers be finished, and cut off who does not read them."""
        if self._on_stop is not None:
            self._on_stop()
        cutting = asyncio.ensure_future(self._cut())
        try:
            await super().shutdown(sockets)
        finally:
            cutting.cancel()

    async def _cut(self) -> None:
        await asyncio.sleep(self._finish_seconds + self._GRACE_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # pyright: ignore[reportAttributeAccessIssue]


def make_server(
    app: Any,
    *,
    protocol: type[PatientProtocol] = PatientProtocol,
    finish_seconds: float = 30.0,
    on_ready: Callable[[], object] | None = None,
    on_stop: Callable[[], object] | None = None,
) -> PatientServer:
    """Make the HTTP server; `run(sockets=[…])` serves until SIGINT or SIGTERM comes, or `should_exit` is set.

    Then no connection is taken any more, and answers that are being written are finished.

    Args:
        app: the application.
        protocol: of connections.
        finish_seconds: how long answers may take to be finished; then connections are cut off.
        on_ready: called once connections are taken.
        on_stop: called when no more are taken; should see to it that answers end in time.
    """
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=30,
        # Never reached: by then all connections are cut off.
        timeout_graceful_shutdown=60 - int(-finish_seconds // 1),
        # Of the waiting line in front of the socket.
        backlog=2048,
    )
    return PatientServer(config, finish_seconds, on_ready, on_stop)


def allow_many_connections() -> None:
    """Let this process have as many open files, connections among them, as the system permits it."""
    if sys.platform == "win32":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
