"""A proxy between an S3 client and its server that injects faults, one exchange at a time.

It knows enough of HTTP/1.1 to find the end of a request and of its answer, so a fault can be chosen
for every exchange although clients reuse connections. It counts the faults that it injects.
"""

from __future__ import annotations

import contextlib
import enum
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.services.object_store import HOST, free_ports


class Fault(enum.Enum):
    """A fault of one exchange; the value is the view of the client."""

    LATENCY = "the complete answer, late"
    REFUSED = "no answer, then refused connections for a while"
    RESET = "a reset instead of an answer"
    CUT = "the connection ends in the middle of the body"
    STALL = "half of the body, then silence"
    ERROR_500 = "500 InternalError"
    ERROR_503 = "503 SlowDown"
    CORRUPT = "one byte of the body is another"


# These change a body. One that meets an answer without a body is kept for the next GET.
BODY_FAULTS = frozenset({Fault.CUT, Fault.STALL, Fault.CORRUPT})
ERRORS = {
    Fault.ERROR_500: ("500 Internal Server Error", "InternalError"),
    Fault.ERROR_503: ("503 Service Unavailable", "SlowDown"),
}


@dataclass(frozen=True)
class Exchange:
    """One request, for a schedule; ``number`` counts the requests from 0.

    ``extent`` is the HTTP range of the object's bytes; empty for all of them.
    """

    number: int
    method: str
    path: str
    extent: str = ""


Schedule = Callable[[Exchange], Fault | None]


def never(exchange: Exchange) -> None:
    """The schedule without faults."""


def at_random(seed: int, rates: Mapping[Fault, float]) -> Schedule:
    """Each fault with its own probability, decided by ``seed`` and the exchange's number alone."""

    def choose(exchange: Exchange) -> Fault | None:
        draw = random.Random(f"{seed} {exchange.number}").random()
        for fault, rate in rates.items():
            draw -= rate
            if draw < 0:
                return fault
        return None

    return choose


def in_turn(*faults: Fault | None, method: str = "", path: str = "") -> Schedule:
    """The given faults, one per exchange that matches, then none.

    An exchange matches if its method equals ``method`` and its path contains ``path``.
    """
    lock, remaining = threading.Lock(), list(faults)

    def choose(exchange: Exchange) -> Fault | None:
        matches = method in ("", exchange.method) and path in exchange.path
        with lock:
            return remaining.pop(0) if matches and remaining else None

    return choose


class FaultProxy:
    """Listens on a separate port and forwards to a server at ``host``; use as a context manager.

    ``schedule`` may be replaced at any time. ``pause_s`` is the duration of LATENCY, STALL and
    REFUSED. ``injected`` counts the injected faults, ``exchanges`` the requests.
    """

    def __init__(self, server_port: int, *, host: str = HOST) -> None:
        self.host = host
        self.server_port = server_port
        self.port = free_ports(1)[0]
        self.forget()
        self._listener: socket.socket | None = None
        self._clients: set[Peer] = set()
        self._lock = threading.Lock()
        self._outage = threading.Lock()
        self._closed = threading.Event()

    def forget(self) -> None:
        """Reset the schedule and all counts."""
        self.schedule: Schedule = never
        self.pause_s = 1.0
        self.exchanges = 0
        self.injected: Counter[Fault] = Counter()
        self._postponed: list[Fault] = []

    def __enter__(self) -> FaultProxy:
        self._listen()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._hang_up()

    def refuse(self, duration_s: float) -> None:
        """End every connection and accept none for ``duration_s``, like a server that restarts."""
        if not self._outage.acquire(blocking=False):
            return
        try:
            self._hang_up()
            if not self._closed.wait(duration_s):
                self._listen()
        finally:
            self._outage.release()

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, self.port))
        listener.listen(128)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _hang_up(self) -> None:
        """Stop listening and end every connection, which wakes the threads that wait on them."""
        with self._lock:
            listener, self._listener = self._listener, None
            clients = list(self._clients)
        if listener:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for client in clients:
            client.hang_up()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            client = Peer(connection)
            with self._lock:
                self._clients.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: Peer) -> None:
        """Forward the exchanges of one connection until a side or a fault ends it."""
        server = None
        # If one side ends, or the server is down, the other side must see it too.
        with contextlib.suppress(OSError, EOFError):
            server = Peer(socket.create_connection((self.host, self.server_port)))
            while self._exchange(client, server):
                pass
        with self._lock:
            self._clients.discard(client)
        client.close()
        if server:
            server.close()

    def _exchange(self, client: Peer, server: Peer) -> bool:
        """Forward one request and its answer; False if the connection must end."""
        head = client.read_head()
        method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        fault = self._choose(method, path, (header(head, b"range") or b"").decode("latin-1"))
        if fault in (Fault.RESET, Fault.REFUSED):
            self._count(fault)
            if fault is Fault.RESET:
                client.reset()
            else:
                self.refuse(self.pause_s)
            return False
        if header(head, b"expect"):
            # The client waits for this before its body; the server must not send it again.
            client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = b"\r\n".join(
                x for x in head.split(b"\r\n") if not x.lower().startswith(b"expect:")
            )
        if fault in ERRORS:
            self._count(fault)
            client.copy_body(None, head)
            client.send(error_answer(fault, with_body=method != "HEAD"))
            return True
        if fault is Fault.LATENCY:
            self._count(fault)
            self._closed.wait(self.pause_s)
        server.send(head)
        client.copy_body(server, head)
        return self._answer(client, server, method, fault)

    def _answer(self, client: Peer, server: Peer, method: str, fault: Fault | None) -> bool:
        """Forward the answer, with a fault in its body if any; False if the connection must end."""
        head = server.read_head()
        length = int(header(head, b"content-length") or 0)
        if fault in BODY_FAULTS and (method != "GET" or length < 2):
            with self._lock:
                self._postponed.append(fault)
            fault = None
        client.send(head)
        if fault not in BODY_FAULTS:
            if method != "HEAD":
                server.copy_body(client, head)
            return True
        self._count(fault)
        server.copy(client, length // 2)
        if fault is Fault.CORRUPT:
            client.send(bytes([server.read(1)[0] ^ 0x55]))
            server.copy(client, length - length // 2 - 1)
            return True
        if fault is Fault.STALL:
            self._closed.wait(self.pause_s)
        return False

    def _choose(self, method: str, path: str, extent: str) -> Fault | None:
        with self._lock:
            exchange = Exchange(self.exchanges, method, path, extent)
            self.exchanges += 1
            fault = self.schedule(exchange)
            if fault is None and self._postponed and method == "GET":
                fault = self._postponed.pop(0)
        return fault

    def _count(self, fault: Fault) -> None:
        with self._lock:
            self.injected[fault] += 1


class Peer:
    """One end of a connection; its buffer keeps the beginning of the next message."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._reader = connection.makefile("rb")

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes; EOFError if the peer ends first."""
        data = self._reader.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def read_line(self) -> bytes:
        """One line with its end; EOFError if the peer ends first."""
        line = self._reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    def read_head(self) -> bytes:
        """First line and headers of an HTTP message, including the empty line after them."""
        head = self.read_line()
        while not head.endswith(b"\r\n\r\n"):
            head += self.read_line()
        return head

    def send(self, data: bytes) -> None:
        """Send all of ``data``."""
        self._socket.sendall(data)

    def copy(self, target: Peer | None, count: int) -> None:
        """Forward exactly ``count`` bytes as they arrive; without a target, drop them."""
        while count:
            part = self._reader.read1(min(count, 1 << 16))
            if not part:
                raise EOFError
            count -= len(part)
            if target:
                target.send(part)

    def copy_body(self, target: Peer | None, head: bytes) -> None:
        """Forward the body that ``head`` announces, by length or in chunks."""
        if (header(head, b"transfer-encoding") or b"").lower() != b"chunked":
            self.copy(target, int(header(head, b"content-length") or 0))
            return
        size, line = 1, b""
        while size:
            line = self.read_line()
            size = int(line.split(b";")[0], 16)
            if target:
                target.send(line)
            self.copy(target, size + 2 if size else 0)
        while line != b"\r\n":
            line = self.read_line()
            if target:
                target.send(line)

    def hang_up(self) -> None:
        """End the connection from a thread that does not read it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """End the connection so that its peer sees a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._reader.close()
        self._socket.close()


def header(head: bytes, name: bytes) -> bytes | None:
    """The value of the header ``name`` (in lower case), or None."""
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.lower() == name:
            return value.strip()
    return None


def error_answer(fault: Fault, *, with_body: bool) -> bytes:
    """The answer of S3 for ``fault``."""
    status, code = ERRORS[fault]
    body = f"<Error><Code>{code}</Code><Message>injected by the test</Message></Error>"
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return (head + (body if with_body else "")).encode()
