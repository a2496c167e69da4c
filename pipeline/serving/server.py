"""The process behind the port: uvicorn, with time limits for silent and slow connections."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import signal
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.errors import ConfigError

LOOPBACK = ("127.0.0.1", "::1", "localhost")

_HEADER_S = 10.0  # from the start of a connection, or the end of an answer, to complete headers
_LINGER_S = 2.0  # of reading a refused upload on, so that its client can read the refusal
_HEADER_BYTES = 16 << 10
_MOST_CONNECTIONS = 1000
_BACKLOG = 128  # connections that are accepted in one turn of the event loop
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = [  # of every answer
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
]


def bind(host: str, port: int) -> socket.socket:
    """A socket with an address of this machine; connections are refused until :func:`run`.

    Raises:
        ConfigError: the address does not exist, is in use, or is forbidden.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(
            f"--host {host}: {error.strerror}; give an address of this machine"
        ) from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        remedy = {
            errno.EADDRINUSE: "choose another --port, or 0 for any free one",
            errno.EACCES: "choose a --port from 1024 on",
        }.get(error.errno or 0, "give an address of this machine")
        raise ConfigError(f"{host}:{port}: {error.strerror}; {remedy}") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """The URL of a server at this socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    app: ASGIApp, bound: socket.socket, *, on_start: Callable[[], None], drain_s: float
) -> None:
    """Serve until SIGTERM or SIGINT; ``on_start`` is called when connections are accepted.

    After the signal no connection is accepted, and requests in flight have ``drain_s`` seconds. A
    second SIGINT ends them at once.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,  # nothing here depends on the address of a client
        server_header=False,
        headers=_HEADERS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=round(drain_s),
    )
    for name in ("uvicorn", "python_multipart"):
        library = logging.getLogger(name)
        library.handlers[:] = logging.getLogger("pipeline").handlers
        library.propagate = False  # open_clip gives the root logger a handler too
    # uvicorn raises the signal again when it has ended; being stopped is the normal end here.
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        _Server(config, on_start).run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """Reports when it has started."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        self._on_start()


def _most_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(_BACKLOG // 2, min(_MOST_CONNECTIONS, files - 3 * _BACKLOG))


class _Protocol(H11Protocol):
    """One connection, which ends if no complete request header arrives in time.

    uvicorn alone waits for the rest of a header for ever, and reads a refused upload to its end. A
    connection too many is closed: without a free file, asyncio would fill the log with tracebacks.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time of the first header."""
        super().connection_made(transport)
        if len(self.connections) > _most_connections():
            transport.abort()
        self._close_unless_asked(_HEADER_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Start the time of the next header, after the rest of this request's body."""
        is_read = not self.cycle.more_body
        self._close_unless_asked(_HEADER_S if is_read else _LINGER_S)
        super().on_response_complete()

    def _close_unless_asked(self, seconds: float) -> None:
        """Close the connection after ``seconds`` unless it has a request that is not answered."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._close_if_idle)

    def _close_if_idle(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if not is_answering and not self.transport.is_closing():
            self.transport.close()
