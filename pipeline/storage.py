"""Files at any URL: local, ``s3://``, ``memory://``, and those of every installed fsspec plugin.

The only module that imports fsspec. Decisions, with their cost:

- A filesystem object is made in the process that uses it and never sent to another (s3fs is not
  safe across forks); one per host serves every thread of the process.
- Credentials and endpoints come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``,
  ``AWS_ENDPOINT_URL``, ``FSSPEC_S3_ANON=true`` for public buckets), never from a URL or from a file
  of this project, and no message shows the parts of a URL that could contain credentials.
- Listings are never cached: a file written by another machine must be visible at once.
- Chained URLs (``simplecache::``) and URLs that name a program are refused.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import shutil
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.core import url_to_fs
from fsspec.spec import AbstractBufferedFile

from pipeline.credentials import LEAVE_OUT, contains_login
from pipeline.credentials import redact as redact
from pipeline.credentials import scrub as scrub
from pipeline.errors import StorageError
from pipeline.retry import T, retry_until
from pipeline.storage_errors import explain, explained

DEADLINE_S = 120.0  # default time for the retries of one call
MAX_TEXT_BYTES = 256 << 20  # of a text or JSON file that is read at once
MAX_TENSOR_BYTES = 4 << 30  # of a file of learned tensors or of a snapshot
_EARLY_S = 25.0  # the same before a run, while no server can be reached

_S3 = ("s3", "s3a")
_S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 20,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": 32,
    },
}
_PROTOCOL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_SETTINGS = ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_ACCESS_KEY_ID")
_ONE_THREAD = threading.RLock()  # for ``memory://``: fsspec reads a dictionary that threads change

_deadline_s = DEADLINE_S  # see patience
_unreachable_s = math.inf  # see giving_up_early

# The time limit of one attempt: a base, which the deadline cuts off, and the time that its bytes
# need on a very slow line. A line that stands still is noticed by ``read_timeout``.
_ATTEMPT_S = 60.0
_SLOWEST_BYTES_PER_S = 256 << 10


@contextmanager
def giving_up_early() -> Iterator[None]:
    """Within the block a server that cannot be reached is an error after 25 s.

    For the checks before a run, while a person waits; training itself keeps its patience.
    """
    global _unreachable_s
    before, _unreachable_s = _unreachable_s, _EARLY_S
    try:
        yield
    finally:
        _unreachable_s = before


@contextmanager
def patience(deadline_s: float) -> Iterator[None]:
    """Within the block, calls that give no limit are retried for ``deadline_s`` seconds."""
    before = _deadline_s
    set_deadline(deadline_s)
    try:
        yield
    finally:
        set_deadline(before)


def deadline_s() -> float:
    """The seconds of retries of a call that gives no limit."""
    return _deadline_s


def set_deadline(seconds: float) -> None:
    """Change :func:`deadline_s` of this process."""
    global _deadline_s
    _deadline_s = seconds


def open_file(url: str, mode: str = "rb") -> IO[Any]:
    """An open file; the caller closes it. Each read is retried like a call of :func:`read_range`.

    Raises:
        StorageError: the URL cannot be opened. Reading raises it if the URL cannot be read.
    """

    def attempt(seconds_left: float) -> IO[Any]:
        filesystem, path = _filesystem(url)
        return filesystem.open(path, mode)

    file = _retried("open", url, attempt)
    if isinstance(file, AbstractBufferedFile) and mode == "rb":  # it does not retry by itself
        file.cache.fetcher = lambda start, stop: read_range(url, start, stop)
    return file


def read_bytes(url: str, *, most: int | None = None) -> bytes:
    """The complete content: at most ``most`` bytes, which give a large file the time it needs.

    Raises:
        StorageError: the URL cannot be read, or its content is too large.
    """
    if most is None:
        return _call("read", url, "cat_file")
    data = read_range(url, 0, most + 1)
    if len(data) > most:
        raise StorageError(
            f"{redact(url)}: has more than {most:,} bytes, and no such file is so large; "
            "restore it from a copy"
        )
    return data


def read_text(url: str, *, most: int | None = MAX_TEXT_BYTES) -> str:
    """The complete content, decoded as UTF-8.

    Raises:
        StorageError: the URL cannot be read, or its content is too large or is not text.
    """
    try:
        return read_bytes(url, most=most).decode("utf-8")
    except UnicodeDecodeError as error:
        place = redact(url)
        raise StorageError(f"{place}: is not text ({error.reason} at {error.start})") from None


def read_range(url: str, start: int, stop: int, *, deadline_s: float | None = None) -> bytes:
    """Bytes ``start`` to ``stop`` (exclusive), fewer if the content ends earlier.

    Raises:
        StorageError: the URL cannot be read.
    """
    size, span = stop - start, {"start": start, "end": stop}
    try:
        data = _call("read", url, "cat_file", deadline_s=deadline_s, bytes_=size, **span)
    except StorageError as error:
        cause = error.__cause__
        if cause and "InvalidRange" in str(cause.__cause__):  # the object ends before ``start``
            return b""
        raise
    if start and len(data) > size:
        raise StorageError(
            f"{redact(url)}: the server sends the complete file instead of a part of it; use "
            "another server, or copy the data set to a folder (`python -m pipeline.prepare copy`)"
        )
    return data[:size]


def write_atomically(url: str, data: bytes, *, deadline_s: float | None = None) -> None:
    """Put ``data`` at ``url``: a reader sees the old content or the new, never a part.

    Raises:
        StorageError: the URL cannot be written.
    """
    if is_local(url):
        with explained("write", url):
            _replace_local(Path(local_path(url)), data)
    else:
        _call("write", url, "pipe_file", data, deadline_s=deadline_s, bytes_=len(data))


def exists(url: str) -> bool:
    """Whether there is a file, or a folder that is not empty, at ``url``."""
    return _call("look for", url, "exists")


def size(url: str) -> int:
    """Bytes of the file at ``url``.

    Raises:
        StorageError: the file does not exist.
    """
    return int(_call("look at", url, "info")["size"])


def modified(url: str) -> datetime | None:
    """When the file at ``url`` was written, by the clock of its storage; None if it is unknown."""
    info = _call("look at", url, "info")
    found = info.get("LastModified", info.get("mtime", info.get("created")))
    return datetime.fromtimestamp(found, timezone.utc) if isinstance(found, float) else found


def list_files(url: str) -> list[str]:
    """The sorted URLs of all files below the folder ``url``; empty if it does not exist."""
    filesystem, _ = _filesystem(url)
    return sorted(filesystem.unstrip_protocol(name) for name in _call("list", url, "find"))


def list_sizes(url: str) -> dict[str, int]:
    """The bytes of each file below the folder ``url``, by URL; empty if it does not exist."""
    filesystem, _ = _filesystem(url)
    found = _call("list", url, "find", detail=True)
    return {filesystem.unstrip_protocol(name): int(info["size"]) for name, info in found.items()}


def remove(url: str) -> None:
    """Delete the file at ``url``; a missing file is no error."""
    if exists(url):
        _call("delete", url, "rm_file")


def remove_folder(url: str) -> None:
    """Delete all files below the folder ``url``, and the folder; a missing one is no error."""
    for name in list_files(url):
        remove(name)
    if is_local(url):
        shutil.rmtree(local_path(url), ignore_errors=True)  # folders without files


def join(url: str, *parts: str) -> str:
    """``url/part/part``, for local paths and URLs alike."""
    return "/".join([url.rstrip("/") if url != "/" else "", *(part.strip("/") for part in parts)])


def is_local(url: str) -> bool:
    """Whether this machine can open ``url`` without a network."""
    found = _PROTOCOL.match(url)
    return found is None or found[1].lower() in ("file", "local")


def local_path(url: str) -> str:
    """The path of a local ``url``, for ``open``."""
    return str(_filesystem(url)[1])


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    found = _PROTOCOL.match(url)
    protocol = found[1].lower() if found else "file"
    if "::" in url or url.startswith(("pipe:", "shell:")):
        raise StorageError(f"{redact(url)}: chained and program URLs are refused; give a plain one")
    if protocol in _S3 and contains_login(url):
        raise StorageError(f"{redact(url)}: the URL contains credentials; {LEAVE_OUT}")
    root = "/".join(url.split("/")[:3]) if found else "file://"
    try:
        filesystem = _instance(root, os.getpid(), tuple(map(os.environ.get, _SETTINGS)))
    except (ValueError, ImportError) as error:  # unknown protocol, or its plugin is not installed
        raise StorageError(f"{redact(url)}: {error}") from error
    return filesystem, filesystem._strip_protocol(url)


@lru_cache(maxsize=32)
def _instance(
    root: str, process: int, settings: tuple[str | None, ...]
) -> fsspec.AbstractFileSystem:
    """One filesystem per host and process; the cache of fsspec makes one per thread."""
    protocol = root.partition("://")[0].lower()
    options = _S3_OPTIONS if protocol in _S3 else {}
    filesystem, _ = url_to_fs(root, **options, skip_instance_cache=True)
    if protocol in _S3:
        filesystem.retries = 1  # only the retries of pipeline.retry
    return filesystem


def _call(
    verb: str,
    url: str,
    method: str,
    *arguments: Any,
    deadline_s: float | None = None,
    bytes_: int = 0,
    **options: Any,
) -> Any:
    """One filesystem call, retried until ``deadline_s``; ``bytes_`` is roughly its traffic."""

    def attempt(seconds_left: float) -> Any:
        filesystem, path = _filesystem(url)
        attempt_s = min(seconds_left, _ATTEMPT_S) + bytes_ / _SLOWEST_BYTES_PER_S
        if not isinstance(filesystem, AsyncFileSystem):
            with _ONE_THREAD if filesystem.protocol == "memory" else nullcontext():
                return getattr(filesystem, method)(path, *arguments, **options)
        call = getattr(filesystem, "_" + method)
        return sync(filesystem.loop, _within, attempt_s, call, path, *arguments, **options)

    return _retried(verb, url, attempt, deadline_s)


def _retried(
    verb: str, url: str, attempt: Callable[[float], T], deadline_s: float | None = None
) -> T:
    """``attempt(seconds left)``, retried until ``deadline_s``."""
    limit_s = _deadline_s if deadline_s is None else deadline_s

    def describe(error: BaseException) -> str:
        return f"cannot {verb} {redact(url)}: {explain(error, url)}"

    with explained(verb, url):
        return retry_until(
            attempt, deadline_s=limit_s, describe=describe, unreachable_s=_unreachable_s
        )


async def _within(
    limit_s: float, call: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any
) -> Any:
    return await asyncio.wait_for(call(*arguments, **options), limit_s)


def _replace_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
