"""A way to a server that can be shut for seconds: what passes is not looked at, nor changed."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType

_HOST = "127.0.0.1"


class Gate:
    """Relays TCP connections from a port of its own to a server; a context manager."""

    def __init__(self, server: str, port: int) -> None:
        self._server = (server, port)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0  # once entered, where to connect to

    def __enter__(self) -> Gate:
        self._listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hang_up()

    def shut(self, seconds: float) -> None:
        """End every connection, then refuse new ones for so long; returns once it is open again."""
        self._hang_up()
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

    def _hang_up(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
            connections = list(self._open)
        if listener:
            # Closing alone would not wake the thread that waits for a connection.
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
                    if self._listener is not listener:  # shut in the meantime
                        return
                    self._open |= {client, server}
                there = threading.Thread(target=_relay, args=(client, server), daemon=True)
                there.start()
                _relay(server, client)
                there.join()
                with self._lock:
                    self._open -= {client, server}


def _relay(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
