"""The limits of connections that uvicorn alone does not have."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from pipeline.serving import server
from tests.serving.service import wait_for


async def answer(request) -> Response:
    return Response("x")


def run_beside(client: Callable[[int], None]) -> None:
    """Serve in this thread while ``client(port)`` runs in another; both must end."""
    bound = server.bind("127.0.0.1", 0)
    failures: list[BaseException] = []

    def run_client() -> None:
        try:
            client(bound.getsockname()[1])
        except BaseException as error:
            failures.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    app = Starlette(routes=[Route("/", answer)])
    server.run(app, bound, on_start=threading.Thread(target=run_client).start, drain_s=5)
    assert failures == []


@pytest.mark.parametrize("answered", [0, 2], ids=["new", "kept"])
def test_connection_whose_header_never_ends_is_closed(monkeypatch, answered):
    """must hold although bytes arrive all the time, for a new connection and for a kept one"""
    monkeypatch.setattr(server, "_HEADER_S", 1.0)
    before = signal.getsignal(signal.SIGTERM)

    def drip(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            for _ in range(answered):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                found = b""
                while not found.endswith(b"\r\n\r\nx"):
                    part = connection.recv(1 << 16)
                    assert part, "closed before its answer"
                    found += part
            connection.settimeout(0.05)
            with pytest.raises(OSError):  # closed, as reported to the sender or to the reader
                while True:
                    connection.sendall(b"X")
                    try:
                        if not connection.recv(1 << 16):
                            raise OSError("closed")
                    except TimeoutError:
                        pass

    run_beside(drip)
    assert signal.getsignal(signal.SIGTERM) is before


def test_connection_too_many_is_closed_and_a_later_one_is_served(monkeypatch):
    monkeypatch.setattr(server, "_most_connections", lambda: 3)

    def is_served(port: int) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        except ConnectionError:
            return False

    def crowd(port: int) -> None:
        idle = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(3)]
        wait_for(lambda: not is_served(port))
        for connection in idle:
            connection.close()
        wait_for(lambda: is_served(port))

    run_beside(crowd)
