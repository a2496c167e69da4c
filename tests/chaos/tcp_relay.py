"""A TCP relay in front of a server; it can refuse connections for some seconds."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType

_HOST = "127.0.0.1"


class TcpRelay:
    """Relays connections unchanged from a port on this host to a server; a context manager."""

    def __init__(self, server: str, port: int) -> None:
        self._server = (server, port)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0  # the port to connect to, valid within the context

    def __enter__(self) -> TcpRelay:
        self._listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def refuse(self, seconds: float) -> None:
        """Close every connection and refuse new ones for ``seconds``; returns after that time."""
        self._close()
        time.sleep(seconds)
        self._listen()

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, self.port))
        listener.listen(128)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _close(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
            connections = list(self._connections)
        if listener:
            # close() alone would not wake the thread that waits for a connection.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(listener, client), daemon=True).start()

    def _serve(self, listener: socket.socket, client: socket.socket) -> None:
        """Relay both directions of one connection until both have ended."""
        with contextlib.suppress(OSError), client:
            with socket.create_connection(self._server) as server:
                with self._lock:
                    if self._listener is not listener:  # closed in the meantime
                        return
                    self._connections |= {client, server}
                upstream = threading.Thread(target=_copy, args=(client, server), daemon=True)
                upstream.start()
                _copy(server, client)
                upstream.join()
                with self._lock:
                    self._connections -= {client, server}


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
