"""A service in a process of its own, and its clients."""

from __future__ import annotations

import http.client
import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
JPEG = {"Content-Type": "image/jpeg"}
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Answer:
    """An answer of the service."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        """The content as a value."""
        return json.loads(self.content)


@dataclass(frozen=True)
class Service:
    """A service that was started."""

    port: int
    process: subprocess.Popen[str]
    log: Path = field(repr=False)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own; an iterable body is sent in chunks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, body, dict(headers or {}))
            found = connection.getresponse()
            return Answer(found.status, dict(found.getheaders()), found.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        """A GET request."""
        return self.request("GET", path)

    def predict(self, data: Any, query: str = "", **headers: str) -> Answer:
        """Classify an image file."""
        return self.request("POST", f"/predict{query}", data, JPEG | headers)

    def send_form(self, *parts: bytes, boundary: str = "limit") -> Answer:
        """Send a form of parts, each a header, an empty line and a content."""
        marks = b"".join(b"--limit\r\n" + part + b"\r\n" for part in parts)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return self.request("POST", "/predict", marks + b"--limit--\r\n", headers)

    def connect(self) -> socket.socket:
        """A connection without a request."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=_TIMEOUT_S)

    def begin_upload(self, data: bytes, n_sent: int) -> socket.socket:
        """A connection on which the first ``n_sent`` bytes of an image were sent."""
        connection = self.connect()
        head = (
            f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        connection.sendall(head.encode() + data[:n_sent])
        return connection

    def metric(self, sample: str) -> float:
        """The value of one sample of the metrics; 0 before it exists."""
        lines = self.get("/metrics").content.decode().splitlines()
        return float(next((line.split()[-1] for line in lines if line.startswith(sample)), 0))


def form_file(data: bytes, name: str = "image") -> bytes:
    """A part of a form with a file."""
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="x.jpg"'
    return f"{disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode() + data


def read_all(connection: socket.socket) -> bytes:
    """Everything until the service closes the connection."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


@contextmanager
def serving(run: Path, log: Path, *options: object) -> Iterator[Service]:
    """A service on a free port; it must still run at the end, or have ended with status 0."""
    command = [sys.executable, "-m", "pipeline.serve", "--run", run, "--port", 0, *options]
    with open(log, "w") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        yield Service(int(line.rsplit(":", 1)[1]), process, log)
        assert process.poll() in (None, 0), log.read_text()
    finally:
        process.kill()
        process.communicate()


def wait_for(condition: Any, *, seconds: float = _TIMEOUT_S) -> None:
    """Return as soon as ``condition()`` holds.

    Raises:
        AssertionError: it never did.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.02)


def draw_image(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """An image of smooth noise."""
    draw = np.random.default_rng(seed)
    coarse_HWC = draw.integers(0, 256, size=(5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse_HWC).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """The file of an image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
