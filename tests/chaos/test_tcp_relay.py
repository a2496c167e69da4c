"""The relay passes all bytes, except while it refuses."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.tcp_relay import TcpRelay


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that answers each connection's first bytes in upper case."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.sendall(client.recv(100).upper())

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def ask(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"hello")
        return b"".join(iter(lambda: client.recv(100), b""))


def test_relay_passes_all_then_refuses_and_then_passes_again(echo):
    with TcpRelay("127.0.0.1", echo) as relay:
        assert ask(relay.port) == b"HELLO"
        with socket.create_connection(("127.0.0.1", relay.port), timeout=30) as open_before:
            refusing = threading.Thread(target=relay.refuse, args=(1.0,))
            refusing.start()
            with contextlib.suppress(ConnectionResetError):  # or it ends in order
                assert open_before.recv(100) == b""
        with pytest.raises(ConnectionRefusedError):
            ask(relay.port)
        refusing.join()
        assert ask(relay.port) == b"HELLO"
    with pytest.raises(ConnectionRefusedError):
        ask(relay.port)
