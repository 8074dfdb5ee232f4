"""Connections that cost nothing for long: half-sent heads, idle clients and slow readers are let go of.

And the loop around it all: a socket, signals, and an end that lets answers be finished.
"""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from typing import Any, ClassVar

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


def make_server(
    app: Any,
    *,
    protocol: type[PatientProtocol] = PatientProtocol,
    finish_seconds: float = 30.0,
    on_ready: Callable[[], None] | None = None,
) -> uvicorn.Server:
    """Make the HTTP server; `run(sockets=[…])` serves until SIGINT or SIGTERM comes, or `should_exit` is set.

    Then no connection is taken any more, and answers that are being written are finished.

    Args:
        app: the application.
        protocol: of connections.
        finish_seconds: how long answers may take to be finished; rounded up to whole seconds.
        on_ready: called once connections are taken.
    """
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=-int(-finish_seconds // 1),
        # Of the waiting line in front of the socket.
        backlog=2048,
    )
    server = uvicorn.Server(config)
    if on_ready is None:
        return server
    startup = server.startup

    async def start(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets)
        on_ready()

    server.startup = start
    return server


def allow_many_connections() -> None:
    """Let this process have as many open files, connections among them, as the system permits it."""
    if sys.platform == "win32":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
